"""`threefold train config.toml`: what is trained, on what, in which stages. Settings only; `run.py` does it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_type_hints

from threefold.config import Settings
from threefold.errors import ConfigError, EvaluationError
from threefold.evaluate.measures import Measure
from threefold.retrieve.modes import Protocol
from threefold.train.checks import check_numbers
from threefold.train.settings import TrainSettings
from threefold.train.shards import By
from threefold.train.tokenise import Limits

#: Defaults of a recipe's `train` where they differ from those of `TrainSettings`, which are for a model from scratch.
FINE_TUNING: Final = {"body_lr": 2e-5, "word_lr": 1e-4, "head_lr": 1e-4, "warmup": 0.1, "idf_steps": 0}

StageKind = Literal["pairs", "crops", "ict", "retromae"]
How = Literal["interpolate", "copy"]


@dataclass(frozen=True, slots=True)
class DataSettings(Settings):
    """Training data and how batches are made of it.

    files        training data: .jsonl, .tsv, .csv, also .gz or .xz; or folders. For stages without pairs: texts
                 (.jsonl with `text`, .txt, or a folder with corpus.jsonl)
    limits       longest query and passage, hard negatives of a pair
    budget       tokens of one batch of all devices together, hard negatives included
    memory_mb    what the scores of one batch may take; 0: any amount
    window       pairs among which lengths are sorted
    temperature  1 takes pairs as they come; higher evens out sources or languages (`by`)
    cache        folder for token ids; empty: `cache` in the output
    """

    files: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    budget: int = 16_384
    memory_mb: int = 0
    window: int = 4_096
    temperature: float = 1.0
    by: By = "group"
    cache: str = ""

    def __post_init__(self) -> None:
        check_numbers(self, positive=("budget", "window"), not_negative=("memory_mb",))
        if not self.temperature >= 1:  # infinity is fine
            raise ConfigError(f"temperature must be at least 1; got {self.temperature}")


@dataclass(frozen=True, slots=True)
class Stage(Settings):
    """One of several stages, each with its own schedule.

    kind    pairs: the joint objective; crops, ict: the same on pairs cut from single texts; retromae: masked
            auto-encoding, for a body that has not seen the language
    epochs  passes over the data
    files   instead of those of `data`
    train   settings that differ from those of `train`
    """

    kind: StageKind = "pairs"
    epochs: int = 1
    files: tuple[str, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1; got {self.epochs}")


@dataclass(frozen=True, slots=True)
class Validation(Settings):
    """Figures during training, on data sets in BEIR layout that are not those that are reported.

    sets        folders; every data set below them counts the same
    split       of the judgements
    measure     as `threefold evaluate` writes it; capitals do not matter
    every       steps; it is also measured before the first and after the last
    patience    end after so many figures in a row that are not better; 0: never
    max_tokens  longest document; 0: the longest that the model reads
    """

    sets: tuple[str, ...]
    split: str = "dev"
    mode: str = "hybrid"
    measure: str = "nDCG@10"
    every: int = 500
    patience: int = 0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.sets or self.every < 1 or self.patience < 0:
            raise ConfigError("validation needs sets, every of at least 1 and patience of at least 0")
        check_numbers(self, not_negative=("max_tokens",))
        try:
            object.__setattr__(self, "measure", str(Measure.parse(self.measure)))  # as the figures are named
            Protocol(modes=(self.mode,), measures=(self.measure,))
        except EvaluationError as error:
            raise ConfigError(f"measure: {error}") from error


@dataclass(frozen=True, slots=True)
class Lora(Settings):
    """Low-rank adapters instead of whole matrices (Hu et al. 2021, arXiv 2106.09685); merged when the model is saved.

    rank, alpha  the update is alpha / rank times a product of that rank
    layers       which linear layers get one
    """

    rank: int = 16
    alpha: int = 32
    layers: tuple[Literal["qkv", "attended", "up", "down"], ...] = ("qkv", "attended", "up", "down")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.layers:
            raise ConfigError("lora needs rank of at least 1, a positive alpha and at least one of the layers")


@dataclass(frozen=True, slots=True)
class NewHeads(Settings):
    """Heads for a model that lacks them, such as one of sentence-transformers; those that it has stay.

    multi_dim  dimensions of a token vector; 0: no new multi head
    """

    sparse: bool = True
    multi_dim: int = 128

    def __post_init__(self) -> None:
        if self.multi_dim < 0:
            raise ConfigError(f"multi_dim must not be negative; got {self.multi_dim}")


@dataclass(frozen=True, slots=True)
class Recipe(Settings):
    """A whole training run.

    output      folder of the result, which `threefold.Encoder` loads; checkpoints and logs are in it too
    model       where it starts: threefold-mini, a folder, or a name on the hub
    name        of the result
    stages      one after another; none: one stage of pairs
    teacher     model whose dense vectors the queries and positives are pulled to (`train.teacher` says how much)
    new_heads   heads that the model gets before the first stage; a new sparse head wants `train.idf_steps` of about 300
    max_tokens  longest text of the result, by more positions (`positions` says how); 0: as the model has
    matryoshka  dimensions at which the result's dense vector may be cut; empty: those of the model
    prompts     of a model that has some: `data` if the training data hold them, `drop` for a result without; "" refuses
    int8        store matrices of the result as one byte per number
    device      auto, cpu, cuda, cuda:1
    """

    output: str
    data: DataSettings
    model: str = "threefold-mini"
    name: str = ""
    stages: tuple[Stage, ...] = ()
    train: TrainSettings = field(default_factory=lambda: TrainSettings.from_dict(FINE_TUNING))
    validation: Validation | None = None
    lora: Lora | None = None
    teacher: str = ""
    new_heads: NewHeads | None = None
    max_tokens: int = 0
    positions: How = "interpolate"
    matryoshka: tuple[int, ...] = ()
    prompts: Literal["", "data", "drop"] = ""
    int8: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.data.files and not all(stage.files for stage in self.chosen):
            raise ConfigError("data.files is required: what to train on")
        check_numbers(self, not_negative=("max_tokens",))
        for number, stage in enumerate(self.stages):
            self.settings_of(stage, f"stages[{number}].train")

    @property
    def chosen(self) -> tuple[Stage, ...]:
        """The stages, or the one that is meant where none is named."""
        return self.stages or (Stage(),)

    def settings_of(self, stage: Stage, path: str = "train") -> TrainSettings:
        """The settings of one stage: those of `train`, with its own on top."""
        return TrainSettings.from_dict(_over(self.train.to_dict(), stage.train), path)


def read_recipe(table: Mapping[str, Any]) -> Recipe:
    """From the tables of a TOML file. A key that is unknown is refused with the nearest known one."""
    _check_names(Recipe, table, "")
    train = table.get("train", {})
    if isinstance(train, Mapping):
        table = {**table, "train": {**FINE_TUNING, **train}}
    return Recipe.from_dict(table, "recipe")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` on `base`, table by table."""
    merged = dict(base)
    for key, value in top.items():
        inner = merged.get(key)
        merged[key] = _over(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _check_names(kind: type[Any], table: Any, path: str) -> None:
    """Refuse an unknown key, and say which it may have been."""
    if not isinstance(table, Mapping):
        return
    known, hints = [f.name for f in fields(kind)], get_type_hints(kind)
    for key, value in table.items():
        where = f"{path}.{key}" if path else key
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ConfigError(f"unknown setting {where!r}{hint}")
        inner = TrainSettings if kind is Stage and key == "train" else _settings_in(hints[key])
        for item in value if isinstance(value, list) else [value]:
            if inner is not None:
                _check_names(inner, item, where)


def _settings_in(hint: Any) -> type[Any] | None:
    """The settings class that an annotation holds: itself, optional, or in a tuple."""
    for one in (hint, *get_args(hint)):
        if isinstance(one, type) and is_dataclass(one):
            return one
    return None
