"""Saved vectors as an encoder: Parquet files of `threefold encode`, looked up by their texts.

For evaluation on a machine without the model. What was not encoded cannot be asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threefold.characters import clean
from threefold.errors import InputError, MissingHeadError
from threefold.integrations.texts import cleaned
from threefold.shards import files_in, read_card, read_parquet
from threefold.text.tokenizer import Tokenizer, Truncate
from threefold.types import Encoded, Representation


class SavedVectors:
    """An encoder that reads what another one wrote. Lengths cannot be chosen any more: other ones than it was
    written with are refused.

    documents  file of the documents, or a folder of files
    queries    file or folder of the queries; None: they are in that of the documents
    """

    def __init__(self, documents: Path, queries: Path | None = None) -> None:
        self._documents = _Table(documents)
        self._queries = _Table(queries) if queries is not None else self._documents
        ours, theirs = self._documents.card, self._queries.card
        if not ours.is_same_model(theirs):
            raise InputError(f"{documents} was made by {ours.name} ({ours.hash}), {queries} by {theirs.name}")
        both = [name for name in self._documents.has if name in self._queries.has]
        self.card = dataclasses.replace(
            ours,
            tokenizer_hash="",
            dense_dim=ours.dense_dim if "dense" in both else 0,
            vocab=ours.vocab if "sparse" in both else 0,
            multi_dim=ours.multi_dim if "multi" in both else 0,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """There is none."""
        raise InputError("saved vectors come without a tokenizer: mode bm25 needs the model; bm25-words does not")

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """The saved vectors of these documents."""
        return self._documents.find(texts, self._wanted(outputs), max_tokens, truncate)

    encode_documents = encode

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """The saved vectors of these queries."""
        return self._queries.find(texts, self._wanted(outputs), max_tokens, truncate)

    def _wanted(self, outputs: Sequence[Representation] | None) -> Sequence[Representation]:
        wanted = self.card.representations if outputs is None else outputs
        missing = [name for name in wanted if name not in self.card.representations]
        if missing:
            raise MissingHeadError(f"the saved vectors have no {missing[0]}; encode again with it")
        return wanted


class _Table:
    def __init__(self, path: Path) -> None:
        self.path = path
        files = files_in(path)
        self.card = read_card(files[0])
        for file in files[1:]:
            other = read_card(file)
            if not self.card.is_same_model(other):
                raise InputError(f"{files[0]} was made by {self.card.name} ({self.card.hash}), {file} by {other.name}")
        read = [read_parquet(file) for file in files]
        texts, self.encoded = [text for _, some, _ in read for text in some], Encoded.concat([one for *_, one in read])
        self.has = [name for name in self.card.representations if getattr(self.encoded, name) is not None]
        self.places = {clean(text): place for place, text in reversed(list(enumerate(texts)))}

    def find(
        self, texts: Sequence[str], wanted: Sequence[Representation], max_tokens: int | None, truncate: Truncate
    ) -> Encoded:
        texts = cleaned(texts)
        unknown = next((text for text in texts if text not in self.places), None)
        if unknown is not None:
            raise InputError(f"{self.path} has no vectors of the text {unknown[:80]!r}; encode it with the same model")
        found = self.encoded.take([self.places[text] for text in texts])
        self._check_lengths(found, max_tokens, truncate)
        left_out: dict[str, Any] = {name: None for name in ("dense", "sparse", "multi") if name not in wanted}
        return dataclasses.replace(found, **left_out)

    def _check_lengths(self, found: Encoded, max_tokens: int | None, truncate: Truncate) -> None:
        """Refuse a limit that the vectors were not made with: a report would say that it was."""
        if truncate == "none" and found.truncated.any():
            raise InputError(f"{self.path} has texts that were cut; truncate='none' is refused")
        if max_tokens is None:
            return
        # A text that was cut earlier than asked is wrong as well; one that was short anyway fits any limit.
        wrong = (found.tokens > max_tokens) | (found.truncated & (found.tokens < max_tokens))
        if wrong.any():
            raise InputError(
                f"{self.path} has vectors of {found.tokens[wrong][0]} tokens of a text, which max_tokens={max_tokens} "
                f"does not give. Encode the texts again with --max-tokens {max_tokens}, or ask for the length they have"
            )
