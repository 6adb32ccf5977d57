"""Arrays that grow on disk: npy files written in pieces and read back memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from threefold.errors import DataError
from threefold.text.tokenizer import Tokens


class Column:
    """One array of one dimension. Its header, which has room for any length, is written again at the end."""

    def __init__(self, file: BinaryIO, dtype: DTypeLike) -> None:
        self._file, self._dtype, self.count = file, np.dtype(dtype), 0
        self._write_header()

    def extend(self, values: Any) -> None:
        """Put these at the end."""
        array = np.ascontiguousarray(values, dtype=self._dtype)
        self._file.write(array.data)
        self.count += len(array)

    def finish(self) -> None:
        """Say in the header how long the array has become."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        about = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.count,)}
        npy.write_array_header_1_0(self._file, about)


class TokenColumns:
    """The arrays of `Tokens`, text after text."""

    def __init__(self, ids: Column, offsets: Column, available: Column) -> None:
        self._ids, self._offsets, self._available = ids, offsets, available
        self._offsets.extend([0])

    def extend(self, tokens: Tokens) -> None:
        """Put these texts at the end."""
        self._offsets.extend(tokens.offsets[1:] + self._ids.count)
        self._ids.extend(tokens.ids)
        self._available.extend(tokens.available)


class Columns:
    """The arrays of one folder, by name."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        self._made: list[Column] = []

    def column(self, name: str, dtype: DTypeLike) -> Column:
        """A new array, `name.npy`."""
        made = Column(self._files.enter_context((self._folder / f"{name}.npy").open("wb")), dtype)
        self._made.append(made)
        return made

    def tokens(self, name: str) -> TokenColumns:
        """Three new arrays, for token ids."""
        ids, offsets = self.column(f"{name}.ids", np.int32), self.column(f"{name}.offsets", np.int64)
        return TokenColumns(ids, offsets, self.column(f"{name}.available", np.int64))

    def finish(self) -> None:
        """Every header says how long its array has become."""
        for column in self._made:
            column.finish()


@contextmanager
def write_columns(folder: Path) -> Iterator[Columns]:
    """Arrays that are complete when the block ends."""
    with ExitStack() as files:
        columns = Columns(folder, files)
        yield columns
        columns.finish()


def read_column(folder: Path, name: str) -> NDArray[Any]:
    """One array, mapped: what is not used is not read. It may be written to; the file stays as it is."""
    path = folder / f"{name}.npy"
    try:
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}). Delete the folder; it is made again from the data") from error


def read_tokens(folder: Path, name: str) -> Tokens:
    """Token ids of a column."""
    ids, offsets, available = (read_column(folder, f"{name}.{part}") for part in ("ids", "offsets", "available"))
    if len(offsets) != len(available) + 1 or offsets[-1] != len(ids):
        raise DataError(f"{folder}: {name} is damaged. Delete the folder; it is made again from the data")
    return Tokens(ids, offsets, available)
