"""Encoding on Ray: a class for Ray Data's `map_batches`, and what a process of Ray may use.

    from threefold.integrations.ray import RayEncoder

    data = ray.data.read_parquet("texts/")
    encoded = data.map_batches(
        RayEncoder,
        fn_constructor_kwargs={"model": "BAAI/bge-m3"},
        batch_size=1_024,
        compute=ray.data.ActorPoolStrategy(size=4),
        num_cpus=4,  # or num_gpus=1
    )
    encoded.write_parquet("vectors/")

The columns that are added are those of `threefold encode`. For a file of texts and a folder of vectors, that command
with `--ray` does the whole job, and goes on where it was stopped; see `ray_jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from threefold.errors import InputError, MissingExtraError
from threefold.shards import card_metadata, encode_rows, vector_columns, vector_fields
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Truncate
from threefold.types import Representation

if TYPE_CHECKING:
    from threefold.encoder.encoder import Encoder
    from threefold.encoder.precision import Precision


class Opening(NamedTuple):
    """How a process of Ray opens its encoder. A folder must be there on every machine."""

    model: str | None = None
    revision: str | None = None
    device: str = "auto"
    precision: Precision = "auto"

    def encoder(self) -> Encoder:
        """The encoder, on the GPU that Ray gave to this process, or on as many cores."""
        from threefold.encoder import threads
        from threefold.encoder.encoder import Encoder

        given = assigned()
        device = self.device
        if given is not None and device == "auto":  # a process without a GPU of its own must not take another's
            device = "cuda" if given.get("GPU") else "cpu"
        if given is not None and device == "cpu":
            threads.at_most(int(given.get("CPU", 1)))
        return Encoder(self.model, revision=self.revision, device=device, precision=self.precision)


class RayEncoder:
    """A batch of rows in, the same rows with their vectors out; made once in each process of Ray Data.

    text_field  column that holds the text
    id_field    column that names a row in an error, where there is such a column
    outputs     some of dense, sparse, multi; None: all that the model has

    Batches are pyarrow tables, pandas frames or Ray's dictionaries of arrays; what comes out is a pyarrow table. Added
    are the columns of `threefold.shards`: dense, sparse_indices, sparse_values, multi, tokens and truncated. On CPUs
    give each process its cores with `num_cpus`: it uses no more threads.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        text_field: str = "text",
        id_field: str = "id",
        outputs: tuple[Representation, ...] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
        revision: str | None = None,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        self._text_field, self._id_field = text_field, id_field
        self._encoder = Opening(model, revision, device, precision).encoder()
        self._outputs = tuple(outputs) if outputs is not None else self._encoder.card.representations
        self._limits: dict[str, Any] = {"max_tokens": max_tokens, "truncate": truncate}

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return self._encoder.card

    def __call__(self, batch: Any) -> pa.Table:
        """The rows of a batch with their vectors."""
        table = _table(batch)
        fields = vector_fields(self.card, self._outputs)
        self._check_columns(table, {field.name for field in fields})
        ids, texts = self._rows(table)
        encoded = encode_rows(self._encoder, ids, texts, outputs=self._outputs, **self._limits)
        for field, column in zip(fields, vector_columns(encoded), strict=True):
            table = table.append_column(field, column.cast(field.type))
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **card_metadata(self.card)})

    def _check_columns(self, table: pa.Table, added: set[str]) -> None:
        names = table.column_names
        if self._text_field not in names:
            raise InputError(f"no column {self._text_field!r}; there are {', '.join(names)}. Say text_field=...")
        taken = [name for name in names if name in added]
        if taken:
            raise InputError(f"the rows have a column {taken[0]!r} already; drop or rename it before encoding")

    def _rows(self, table: pa.Table) -> tuple[list[str], list[str]]:
        numbers = range(len(table))
        named = self._id_field in table.column_names
        ids = list(map(str, table[self._id_field].to_pylist() if named else numbers))
        texts = table[self._text_field].to_pylist()
        for number, text in zip(numbers, texts, strict=True):
            if not isinstance(text, str):
                who = f"the row with the id {ids[number]!r}" if named else f"row {number} of a batch"
                kind = "nothing" if text is None else type(text).__name__
                raise InputError(f"{who} has {kind} in the column {self._text_field!r}, not text")
        return ids, texts


def ray_package() -> Any:
    """The package, or an error that names the extra."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "encoding on Ray") from error
    return ray


def assigned() -> Mapping[str, float] | None:
    """What Ray gave to this process, such as {"CPU": 4.0, "GPU": 1.0}; None: it is none of Ray's actors."""
    ray = ray_package()
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    given: Mapping[str, float] = ray.get_runtime_context().get_assigned_resources()
    return given


def _table(batch: Any) -> pa.Table:
    if isinstance(batch, pa.Table):
        return batch
    if not isinstance(batch, Mapping):
        return pa.Table.from_pandas(batch, preserve_index=False)
    return pa.table({name: _column(name, values) for name, values in batch.items()})


def _column(name: str, values: Any) -> pa.Array:
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f'the column {name!r} has {array.ndim} dimensions; pass batch_format="pyarrow" to map_batches')
    return pa.array(array.tolist() if array.dtype.kind in "OUS" else array)
