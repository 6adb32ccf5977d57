"""`threefold ask`: an answer of a chat model from a collection, with its sources."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli import options
from threefold.cli.opened import In, Url, Where, condition_in, existing
from threefold.cli.show import complain, note, one_line, out, print_json, visible
from threefold.errors import InputError
from threefold.integrations.ask import PASSAGE_TOKENS, PASSAGES

if TYPE_CHECKING:
    from threefold.integrations.ask import Answer

KEY_ENV = "THREEFOLD_LLM_KEY"


def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    into: In,
    llm: Annotated[
        str,
        typer.Option(
            help="OpenAI-compatible endpoint, such as http://localhost:11434/v1 (Ollama). The passages go there.",
            envvar="THREEFOLD_LLM",
        ),
    ] = "",
    llm_model: Annotated[
        str | None, typer.Option(help="The model there; needed if it has several.", envvar="THREEFOLD_LLM_MODEL")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Passages that are searched for.")] = PASSAGES,
    passage_tokens: Annotated[int, typer.Option(help="Tokens that they may have together.")] = PASSAGE_TOKENS,
    temperature: Annotated[float | None, typer.Option(help="Of the chat model; its own if left out.")] = None,
    where: Where = "",
    rerank: Annotated[str | None, typer.Option(help="Cross-encoder that orders the passages.")] = None,
    url: Url = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer a question from a collection by a chat model of yours, with the passages that the answer rests on."""
    from threefold.integrations.ask import ask as answer_of
    from threefold.integrations.chat import Chat
    from threefold.retrieve.stages import Rerank

    if not llm:
        raise InputError(
            "give the address of a chat model: --llm http://localhost:11434/v1, or THREEFOLD_LLM. "
            "Passages and their best sentences without one: threefold search --quote"
        )
    condition = condition_in(where)
    key = os.environ.get(KEY_ENV) or None
    with (
        Chat(llm, llm_model, api_key=key, temperature=temperature) as chat,
        existing(into, url, model, revision, device, precision, rerank) as collection,
    ):
        answer = answer_of(
            collection,
            question,
            chat,
            k=k,
            passage_tokens=passage_tokens,
            on_text=None if as_json else _write,
            where=condition,
            rerank=Rerank("cross") if rerank else None,
        )
    if as_json:
        print_json(answer.to_dict())
    elif answer.passages:
        _show(answer)
    if not answer.passages:
        complain(f"nothing in {into} matches; the chat model was not asked")
        raise typer.Exit(1)


def _write(piece: str) -> None:
    """A piece of the answer, as soon as it is there."""
    sys.stdout.write(visible(piece))
    sys.stdout.flush()


def _show(answer: Answer) -> None:
    """What the answer rests on, and what is to be known of it."""
    out.print("\n")
    for number, hit in zip(answer.cited, answer.sources, strict=True):
        chunk = hit.chunk
        out.print(
            one_line(f"[{number}] {chunk.title or chunk.document_id}  {chunk.document_id}:{chunk.start}-{chunk.end}")
        )
    if not answer.cited:
        note("the answer cites no passage: nothing shows what it rests on")
    if answer.unknown:
        note(f"the answer cites {', '.join(map(str, answer.unknown))}, and there are {len(answer.passages)} passages")
    if answer.left_out:
        note(f"{answer.left_out} passages found did not fit into --passage-tokens and were not read")
    if answer.finish == "length":
        note("the answer was cut: the endpoint's limit of tokens was reached")
    elif answer.finish != "stop" or not answer.text.strip():
        note(f"the answer has {len(answer.text):,} characters and ended by {answer.finish!r}")
