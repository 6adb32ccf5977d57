"""Files of training data -> token ids on disk, memory-mapped: made once, and used again while nothing has changed.

    CACHE/pairs-KEY/   manifest.json and one npy file per array of `PairTable`

KEY is a hash of everything that decides the numbers: the files' contents, the tokenizer, the limits. A folder is
written under another name and renamed when it is complete, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from threefold.errors import ConfigError, DataError
from threefold.text.tokenizer import Tokenizer
from threefold.train.batches import PairTable
from threefold.train.columns import read_column, read_tokens
from threefold.train.examples import data_files, read_examples
from threefold.train.shares import temperature_shares
from threefold.train.tokenise import Group, Limits, Made, Progress, write_table

#: Part of every key: a new layout never reads an old folder.
_FORMAT: Final = 1

#: What is weighed against each other by a temperature.
By = Literal["group", "source", "language"]
_CLASS: Final[Mapping[str, Callable[[Group], Hashable]]] = {
    "group": lambda group: group,
    "source": lambda group: group.source,
    "language": lambda group: group.positive_lang,
}


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """A table on disk.

    key     hash of everything that decides the numbers
    groups  pair i belongs to groups[table.source[i]]; pairs: how many each has
    counts  tokens, texts that were cut, and what is odd and yet no error
    """

    folder: Path
    key: str
    table: PairTable
    groups: tuple[Group, ...]
    pairs: tuple[int, ...]
    counts: Mapping[str, int]

    def shares(self, temperature: float, by: By = "group", *, most: float = float("inf")) -> dict[int, float]:
        """For `batches.plan`: how often pairs are taken, where groups, sources or languages of passages are weighed."""
        if by not in _CLASS:
            raise ConfigError(f"by must be one of {', '.join(get_args(By))}; got {by!r}")
        classes = {number: _CLASS[by](group) for number, group in enumerate(self.groups)}
        return temperature_shares(dict(enumerate(self.pairs)), temperature, classes=classes, most=most)


def prepare(
    paths: Iterable[Path],
    tokenizer: Tokenizer,
    cache: Path,
    limits: Limits | None = None,
    *,
    progress: Progress | None = None,
) -> Shards:
    """The table of these files, from the cache folder if it is there. It appears when every line has been checked."""
    limits = limits or Limits()
    files = data_files(paths)
    made_by = {
        "format": _FORMAT,
        "tokenizer": tokenizer.fingerprint(),
        "limits": limits.to_dict(),
        "files": [{"name": file.name, "sha256": _digest(file)} for file in files],
    }
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"pairs-{key}"
    if (folder / "manifest.json").is_file():
        return load_shards(folder)
    part = cache / f"{folder.name}.{secrets.token_hex(6)}.part"  # of this call alone: numbers of processes come again
    try:
        part.mkdir(parents=True)
        found = Counter[str]()
        made = write_table(part, read_examples(files, found), tokenizer, limits, found, progress)
        _write_manifest(part, made, made_by)
        _settle(part, folder)
    except OSError as error:
        raise DataError(f"{cache}: the tokens cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_shards(folder)


def check_apart(files: Iterable[Path], *written: Path) -> None:
    """Refuse a folder of training data in which the run writes: its files of JSON would be read as data."""
    for folder in files:
        for path in written:
            if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(
                    f"{path} is in {folder}, all files of which are training data: what the run writes would be read "
                    "too. Put it elsewhere, or name the files one by one"
                )


def load_shards(folder: Path) -> Shards:
    """A folder that `prepare` made."""
    try:
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        groups, pairs = tuple(Group(**group) for group in about["groups"]), tuple(about["pairs"])
        counts: dict[str, int] = about["counts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a table of training data ({error}). Delete it, or name another") from error
    texts = ("query", "positive", "negative")
    columns: dict[str, Any] = {
        one.name: (read_tokens if one.name in texts else read_column)(folder, one.name) for one in fields(PairTable)
    }
    return Shards(folder, folder.name.removeprefix("pairs-"), PairTable(**columns), groups, pairs, counts)


def _settle(part: Path, folder: Path) -> None:
    """Give the finished folder its name. Another process may have been faster; its table is the same."""
    try:
        part.rename(folder)
    except OSError:
        if not (folder / "manifest.json").is_file():
            raise


def _write_manifest(folder: Path, made: Made, made_by: Mapping[str, Any]) -> None:
    about = {"made_by": made_by, **made._asdict(), "groups": [group._asdict() for group in made.groups]}
    (folder / "manifest.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
