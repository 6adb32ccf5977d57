"""Checkpoints of a run: one file with everything that decides the future. A crash while writing keeps the last one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from threefold.errors import CheckpointError
from threefold.replacing import replacing
from threefold.types import Ints

#: Parts of a state that are JSON in the file: a number of NumPy among them could be written, but not read without code.
_TABLES: Final = ("settings", "origin", "notes", "unreported")


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write, then rename."""
    tables = {name: json.dumps(state[name], sort_keys=True) for name in _TABLES if name in state}
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_drafts(path)
    with replacing(path) as draft:
        torch.save({**state, **tables}, draft)


def drop_drafts(path: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left of it (`replacing`): a folder of
    training has one writer, and each draft is as large as the file.
    """
    target = path.resolve()
    for left in target.parent.glob(f".[0-9]*.{target.name}"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The state in the file, which must have the parts that are `needed`; tensors on the CPU, no code is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds {type(state).__name__}, not a state")
        if missing := [name for name in needed if name not in state]:
            raise ValueError(f"it has no {missing[0]}")
        # cross-encoders had these as they are before
        return state | {name: json.loads(state[name]) for name in _TABLES if isinstance(state.get(name), str)}
    except Exception as error:  # a damaged pickle fails in any way that it likes
        raise unusable(path, error) from error


def unusable(path: Path, error: Exception) -> CheckpointError:
    """What is said of a checkpoint that cannot be read, or does not fit."""
    return CheckpointError(f"cannot resume from {path}: {error}. Delete it to begin again")


def flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings of settings under one name each, such as `loss.distil`, so that a message names what has changed."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def check_same_settings(path: Path, old: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str]) -> None:
    """Refuse a checkpoint of another recipe, but for the settings that are `free` to change."""
    changed = [key for key in sorted(old.keys() & now.keys() - free) if old[key] != now[key]]
    if changed:
        raise CheckpointError(
            f"{path} was written with {changed[0]} {old[changed[0]]!r}, now it is {now[changed[0]]!r}. "
            "Restore it, train into another folder, or delete the checkpoint to begin again"
        )


def check_same_plan(path: Path, old: str | None, now: str) -> None:
    """Refuse a checkpoint of other batches."""
    if old is not None and old != now:
        raise CheckpointError(
            f"{path} was written with another plan: the pairs, their shares, the budget or the seed "
            "have changed. Restore them, train into another folder, or delete the checkpoint to begin again"
        )


def plan_digest(plan: Sequence[Ints]) -> str:
    """16 hex digits of all batches in order."""
    digest = hashlib.sha256()
    for rows in plan:
        digest.update(np.asarray(rows, np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]
