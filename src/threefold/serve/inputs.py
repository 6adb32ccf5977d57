"""What clients send as input: one text, several, or token ids; each refused with the reason when it cannot be taken."""

from __future__ import annotations

from typing import Any, NamedTuple

from threefold.serve.errors import TOO_LARGE, RequestError

#: The reason for arrays of numbers, in the words that solve it: where clients send those of OpenAI, ...
TOKENS_REFUSED = (
    "input is an array of token ids. They are ids of another tokenizer (LangChain's OpenAIEmbeddings sends those of "
    "OpenAI's), which would give vectors of nonsense. Send text: with LangChain pass check_embedding_ctx_length=False. "
    'Ids of this model\'s own tokenizer are taken with "input_ids_vocab": "xlm-roberta"'
)
#: ... where a setting of the server decides, ...
TOKENS_NEED_A_SETTING = (
    "input is an array of token ids, which this server does not take. Send text, or start it with --set token_ids=true"
)
#: ... and where only text has a meaning.
_NO_TOKENS = "{field} is an array of numbers, where texts are read. Send strings"


class Inputs(NamedTuple):
    """Either texts or rows of token ids, and whether it was a single one."""

    texts: list[str]
    ids: list[list[int]]
    single: bool


def inputs_of(value: Any, field: str, most: int, *, ids_allowed: bool, refusal: str = _NO_TOKENS) -> Inputs:
    """Texts or ids; empty ones are refused, and more than `most`. `refusal` is said of ids that are not allowed."""
    if isinstance(value, str):
        return Inputs([_text(value, field, None)], [], True)
    if not isinstance(value, list):
        raise RequestError(f"{field} must be a string or an array of strings", param=field)
    if not value:
        raise RequestError(f"`{field}` cannot be empty", param=field, tei="Empty")
    if is_ids(value):
        _check_ids(ids_allowed, field, refusal)
        return Inputs([], [value], True)
    check_count(len(value), most, field)
    if all(isinstance(item, list) and item and is_ids(item) for item in value):
        _check_ids(ids_allowed, field, refusal)
        return Inputs([], value, False)
    return Inputs([_text(item, field, i) for i, item in enumerate(value)], [], False)


def texts_of(value: Any, field: str, most: int) -> list[str]:
    """An array of texts."""
    if not isinstance(value, list):
        raise RequestError(f"{field} must be an array of strings", param=field)
    return inputs_of(value, field, most, ids_allowed=False).texts


def check_count(count: int, most: int, field: str) -> None:
    """Refuse more texts than one request may have, in the words of TEI."""
    if count > most:
        message = f"batch size {count} > maximum allowed batch size {most}"
        raise RequestError(message, param=field, code=TOO_LARGE)


def is_ids(value: list[Any]) -> bool:
    """Whether an array holds whole numbers alone."""
    return all(type(item) is int for item in value)


def _check_ids(allowed: bool, field: str, refusal: str) -> None:
    if not allowed:
        raise RequestError(refusal.replace("{field}", field), param=field)


def _text(value: Any, field: str, i: int | None) -> str:
    place = field if i is None else f"{field}[{i}]"
    if not isinstance(value, str):
        raise RequestError(f"{place} must be a string; got {_kind(value)}", param=field)
    if not value:
        raise RequestError(f"`{place}` cannot be empty", param=field)
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "a truth value", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return kinds.get(type(value), "null")
