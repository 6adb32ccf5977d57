"""What an output was begun with, and the small files beside a run that say so. Another run is refused, or begins again.

OUTPUT/recipe.json   the recipe
OUTPUT/data.json     {"model": fingerprint, "1-pairs": hash of the stage's data, ...}
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from threefold.errors import CheckpointError, ConfigError
from threefold.replacing import replacing
from threefold.train.checkpoints import flat
from threefold.train.recipe import Recipe
from threefold.train.settings import CLOCKS

#: Settings of a recipe that may change when it is run again: where and how long, not what.
_FREE: Final = CLOCKS | {"device", "cache", "output"}


class Begun:
    """The marks of an output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._recipe, self._data = output / "recipe.json", output / "data.json"

    def is_other(self, recipe: Recipe, marks: Mapping[str, str], *, force: bool) -> bool:
        """Whether the folder is of another recipe, model or data: an error unless it may begin again (`force`)."""
        changed = self._other_recipe(recipe) or self._other_data(marks)
        if changed and not force:
            raise ConfigError(
                f"{self.output} was begun with {changed}. Restore that, name another output, or say --force to "
                "begin again"
            )
        return bool(changed)

    def _other_recipe(self, recipe: Recipe) -> str:
        old, now = flat(_fixed(_read(self._recipe))), flat(_fixed(json.loads(json.dumps(recipe.to_dict()))))
        for key in sorted(now.keys() | old.keys()) if old else []:
            if now.get(key) != old.get(key):
                return f"another recipe: {key} was {old.get(key)!r}, now it is {now.get(key)!r}"
        return ""

    def _other_data(self, marks: Mapping[str, str]) -> str:
        old = _read(self._data)
        for name in sorted(old.keys() & marks.keys()):
            if old[name] != marks[name]:
                return "other weights of the model" if name == "model" else f"other data of stage {name}"
        return ""

    def write(self, recipe: Recipe, marks: Mapping[str, str]) -> None:
        """From here on the folder is of this run."""
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(self._recipe, recipe.to_dict())
        write_json(self._data, marks)

    def forget(self) -> None:
        """Remove what the run before has made, but for its model, which stays until the next one is complete."""
        for folder in ("stages", "tensorboard"):  # before the marks: a kill in between must not leave stages without
            if (self.output / folder).exists():
                shutil.rmtree(self.output / folder)
        for file in (self.output / "log.jsonl", self._data, self._recipe):
            file.unlink(missing_ok=True)


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """A small file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(table, dict):
            return table
        raise ValueError(f"it holds {type(table).__name__}, not a table")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Delete it and run the same line again") from error


def _read(path: Path) -> dict[str, Any]:
    """Nothing, where nothing has begun."""
    return read_json(path) if path.is_file() else {}


def _fixed(table: Any) -> Any:
    """Without the settings that are free to change."""
    if isinstance(table, dict):
        return {key: _fixed(value) for key, value in table.items() if key not in _FREE}
    return [_fixed(item) for item in table] if isinstance(table, list) else table
