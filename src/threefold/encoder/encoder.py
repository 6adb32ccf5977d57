"""Texts in, `Encoded` out. Owns the device, the precision and the batching; nothing else in threefold does.

    tokens -> packed batches -> hidden states -> heads -> the caller's order

An encoder may be shared between threads. Nothing of it changes after it was made but its budget, which is lowered where
a GPU has no memory for it (`fitting.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from threefold.encoder import native
from threefold.encoder.attention import Layout
from threefold.encoder.checkpoint import load
from threefold.encoder.finite import Finite
from threefold.encoder.fitting import Portion, Room, fitted, portions
from threefold.encoder.forks import guard_children
from threefold.encoder.front import Front, Progress
from threefold.encoder.gathering import Gathering
from threefold.encoder.heads import gather_sparse
from threefold.encoder.model import Model
from threefold.encoder.network import Batch
from threefold.encoder.precision import (
    Precision,
    check_precision,
    choose_budget,
    choose_device,
    choose_precision,
    prepare,
)
from threefold.encoder.recorded import Recorded
from threefold.encoder.rows import Wanted, assemble, head_tensors
from threefold.encoder.sources import find
from threefold.encoder.transfer import OnTheWay, ahead_in_thread
from threefold.errors import InputError
from threefold.text.tokenizer import Tokens
from threefold.types import Encoded, Ints, Output, Representation, Row


class Encoder(Front):
    """A model that reads texts.

    model      None for the embedded model; a folder; or a name on the hub such as "BAAI/bge-m3"
    device     "auto", "cpu", "cuda", "cuda:1", "mps"
    precision  "auto" (bfloat16, float16 or float32: what is fast there), "float32", "bfloat16", "float16", "int8"
    revision   commit on the hub; None takes the one that threefold was written against, or the newest
    pooling    how the dense vector is read, for a bare backbone that does not say it
    query_prompt, document_prompt
               put before texts by `encode_queries` and `encode_documents`; None: what the folder declares. The cards of
               e5 ask for "query: " and "passage: ", which no file declares
    budget     tokens in one forward pass; None chooses by device. It is lowered, with a warning, where they do not fit
    graphs     on a CUDA GPU: record the layers once per length, for single texts of at most 64 tokens (queries)

    >>> encoder = Encoder()
    >>> three = encoder.encode(["What is BGE M3?"])
    >>> three.dense.shape, len(three.sparse), three.multi[0].shape[1]
    ((1, 384), 1, 128)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        revision: str | None = None,
        pooling: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        budget: int | None = None,
        graphs: bool = False,
    ) -> None:
        guard_children()
        self.device = choose_device(device)
        check_precision(precision, self.device)
        if graphs and self.device.type != "cuda":
            raise InputError(f"graphs=True needs a CUDA GPU; the device is {self.device}. Leave it out elsewhere")
        source = find(model, revision)
        loaded = load(source.folder, pooling, query_prompt=query_prompt, document_prompt=document_prompt)
        self.precision = choose_precision(precision, self.device, loaded.config.network)
        self._room = Room(source.name, self.device, choose_budget(loaded.config.network, self.device, budget))
        super().__init__(source, loaded, self.precision)
        self._model = prepare(loaded, self.precision, self.device)
        place = self.device  # not `self` below: an encoder that holds itself keeps its memory until the next collection
        self._finite = Finite(
            source.name, self._model, self.precision, lambda: prepare(load(source.folder, pooling), "float32", place)
        )
        self._recorded = Recorded(self._model.network, self.device) if graphs else None

    @property
    def budget(self) -> int:
        """Tokens in one forward pass."""
        return self._room.budget

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, as they are held now."""
        return self._finite.weight_bytes

    @property
    def kernels(self) -> str:
        """What runs the layers: "native" (threefold's own, see docs/speed.md) and for which instructions, or "PyTorch",
        and why not the former."""
        if getattr(self._model.network, "native", False):
            return f"native ({native.choice()[0]})"
        if self.device.type != "cpu" or self.precision == "float32":
            return "PyTorch"
        return f"PyTorch ({native.status() or 'sizes that the native ones do not know'})"

    def __repr__(self) -> str:
        return f"Encoder({self._source.name!r}, device={str(self.device)!r}, precision={self.precision!r})"

    # ---- encoding ------------------------------------------------------------------------------------

    def _encode_parts(
        self, parts: Iterator[Tokens], wanted: Sequence[Representation], dim: int | None, progress: Progress | None
    ) -> Iterator[Encoded]:
        """Each part once its last batch is here; a GPU has been told the first one of the next part by then."""
        done = fitted(
            _batches(parts, self._room),
            lambda batch: self._begin(batch, wanted, dim),
            lambda batch, begun: self._finish(begun, wanted, dim, batch),
            self._room,
        )
        for batch, _ in done:
            if progress is not None:
                progress(len(batch.rows), batch.count)
            if batch.last:
                yield batch.found.result()

    def _each(self, tokenize: Callable[[tuple[int, list[str]]], Tokens], parts: Iterator[Any]) -> Iterator[Tokens]:
        """A GPU computes meanwhile: the next part is cut into tokens beside it. The caller's stream is read here."""
        return ahead_in_thread(parts, tokenize) if self.device.type == "cuda" else super()._each(tokenize, parts)

    def encode_tokens(
        self, tokens: Tokens, outputs: Sequence[Sequence[Output]], *, between: Callable[[], None] | None = None
    ) -> list[Row]:
        """One row per text that was tokenized already, in the caller's order; what a server packs together.

        outputs  what each text wants: one forward pass for all, each head only over the texts that asked for it
        between  called before every layer, in this thread; it may encode something more urgent
        """
        self._check_rows(tokens, outputs)
        done = fitted(
            portions(tokens, self.budget),
            lambda batch: self._begin_rows(batch, [outputs[int(i)] for i in batch.rows], between),
            lambda _, begun: self._finish_rows(*begun),
            self._room,
        )
        found: list[Row] = [Row()] * len(tokens)
        for batch, rows in done:
            for i, row in zip(batch.rows.tolist(), rows, strict=True):
                found[i] = row
        return found

    # ---- inside --------------------------------------------------------------------------------------

    def _begin(self, batch: Portion, wanted: Sequence[Representation], dim: int | None) -> _Begun:
        ids, layout = _packed(batch)
        return _Begun(ids, layout, self._run(self._model, ids, layout, wanted, dim))

    def _finish(self, begun: _Begun, wanted: Sequence[Representation], dim: int | None, batch: _Batch) -> None:
        """Put what was found where it belongs."""
        ids, layout, found = begun
        raw = self._finite.checked(found, lambda model: self._run(model, ids, layout, wanted, dim))
        sparse = multi = None
        if "sparse" in wanted:
            sparse = gather_sparse(raw["sparse"], ids, layout, self._card.vocab, self._tokenizer.special_ids)
        if "multi" in wanted:
            multi = raw["multi"], layout.offsets[:-1] + 1  # without `<s>`
        batch.found.add(batch.rows, dense=raw.get("dense"), sparse=sparse, multi=multi)

    @torch.inference_mode()
    def _run(
        self, model: Model, ids: Ints, layout: Layout, wanted: Sequence[Representation], dim: int | None
    ) -> OnTheWay:
        hidden = self._states(model, ids, layout)  # (T, d)
        heads, found = model.heads, {}
        if "dense" in wanted:
            found["dense"] = heads.dense_vectors(hidden, layout)
            if dim is not None:
                found["dense"] = torch.nn.functional.normalize(found["dense"][:, :dim], dim=-1)
        if "sparse" in wanted:
            found["sparse"] = heads.sparse_weights(hidden)
        if "multi" in wanted:
            found["multi"] = heads.multi_vectors(hidden)
        return OnTheWay(found)

    def _begin_rows(self, batch: Portion, wanted: Wanted, between: Callable[[], None] | None) -> tuple[_Begun, Wanted]:
        ids, layout = _packed(batch)
        return _Begun(ids, layout, self._run_rows(self._model, ids, layout, wanted, between)), wanted

    def _finish_rows(self, begun: _Begun, wanted: Wanted) -> list[Row]:
        ids, layout, found = begun
        raw = self._finite.checked(found, lambda model: self._run_rows(model, ids, layout, wanted, None))
        return assemble(raw, ids, layout, wanted, self._card.vocab, self._tokenizer.special_ids)

    @torch.inference_mode()
    def _run_rows(
        self, model: Model, ids: Ints, layout: Layout, wanted: Wanted, between: Callable[[], None] | None
    ) -> OnTheWay:
        return OnTheWay(head_tensors(model.heads, self._states(model, ids, layout, between), layout, wanted))

    def _states(
        self,
        model: Model,
        ids: Ints,
        layout: Layout,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """(T, d) states of the last layer."""
        if self._recorded is not None and model is self._model and self._recorded.takes(layout):
            return self._recorded(ids, layout)
        batch = Batch.of(ids, layout, self._config.network.first_position, self.device)
        hidden: Tensor = model.network(batch, between)  # (T, d)
        return hidden


@dataclass(frozen=True, slots=True, eq=False)
class _Batch(Portion):
    """One batch of a part of a stream.

    found  what is known of that part
    """

    found: Gathering = field(kw_only=True)


def _batches(parts: Iterator[Tokens], room: Room) -> Iterator[_Batch]:
    for tokens in parts:
        found = Gathering(tokens)
        for part in portions(tokens, room.budget):
            yield _Batch(tokens, part.rows, part.last, found=found)


def _packed(batch: Portion) -> tuple[Ints, Layout]:
    """The ids of these texts end to end, and where each is."""
    part = batch.tokens.take(batch.rows)
    return part.ids, Layout.of(part.lengths)


class _Begun(NamedTuple):
    """A batch that the device was told to compute."""

    ids: Ints
    layout: Layout
    found: OnTheWay
