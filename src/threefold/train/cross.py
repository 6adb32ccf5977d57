"""A whole run: training data and a model in, a cross-encoder out that `CrossEncoder` and `transformers` load.

table of settings -> tokens on disk -> candidates -> batches -> training -> folder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from threefold.config import Settings
from threefold.encoder.checkpoint import load
from threefold.encoder.cross_model import CrossConfig, CrossModel, load_cross
from threefold.encoder.files import read_backbone
from threefold.encoder.network import NetworkConfig, initialise
from threefold.encoder.sources import EMBEDDED, find
from threefold.errors import CheckpointError, ConfigError
from threefold.export.cross import write_cross
from threefold.export.place import check_free, new_folder
from threefold.text.tokenizer import Tokenizer
from threefold.train.cross_groups import Frame, Groups, candidates, group_plan
from threefold.train.cross_loop import CrossSettings, CrossTrainer
from threefold.train.shards import prepare
from threefold.train.tokenise import Limits
from threefold.types import Ints


@dataclass(frozen=True, slots=True)
class CrossData(Settings):
    """Training data and how batches are made of it.

    files   training data (`threefold.train.examples`), or folders
    limits  longest query and passage; `negatives`: candidates of a query beside the positive, hard negatives first,
            then passages that are drawn from other records
    budget  tokens of one batch; the query counts once with every candidate
    window  pairs among which lengths are sorted
    cache   folder for token ids; empty: the working folder
    """

    files: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    budget: int = 8_192
    window: int = 4_096
    cache: str = ""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files is empty: what to train on")


@dataclass(frozen=True, slots=True)
class CrossRun(Settings):
    """`kind = "cross"` in the settings of `threefold train`.

    output      folder of the finished cross-encoder; `<output>.run` keeps tokens and checkpoint while it is trained
    model       where it starts: a cross-encoder, or a BERT or XLM-R; threefold-mini, a folder, or a name on the hub
    max_tokens  longest pair, specials included
    epochs      passes over the data
    seed        of the order, of drawn candidates, and of a new head
    """

    output: str
    data: CrossData
    model: str = EMBEDDED
    revision: str | None = None
    kind: Literal["cross"] = "cross"
    max_tokens: int = 512
    epochs: int = 1
    seed: int = 0
    device: str = "auto"
    train: CrossSettings = field(default_factory=CrossSettings)

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output is empty: where to put the result")
        if self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1; got {self.epochs}")
        if self.max_tokens < 16:
            raise ConfigError(f"max_tokens must be at least 16; got {self.max_tokens}")


class CrossResult(NamedTuple):
    """What a run made.

    queries  pairs of query and positive
    counts   tokens, texts that were cut, and what is odd in the data and yet no error
    last     the last line of the log; empty when the run had ended before
    """

    folder: Path
    queries: int
    steps: int
    counts: dict[str, int]
    last: dict[str, float]


def train_cross(
    settings: Mapping[str, Any],
    *,
    base: Path | None = None,
    force: bool = False,
    report: Callable[[dict[str, float]], None] = lambda line: None,
) -> CrossResult:
    """Train as a table of settings says (`CrossRun`); an interrupted run goes on where its last checkpoint is.

    base    folder that relative paths begin from; None: the current one
    force   replace an earlier model of the output's name
    report  called with the means over the last `log_every` steps
    """
    run = CrossRun.from_dict(settings, "train")
    root = base or Path()
    output = root / run.output
    work = output.with_name(f"{output.name}.run")
    check_free(output, force=force)
    model, tokenizer = starting_model(run, root)
    data = run.data
    cache = root / data.cache if data.cache else work
    shards = prepare([root / file for file in data.files], tokenizer, cache, data.limits)
    groups = candidates(shards.table, data.limits.negatives + 1, run.seed)
    frame = Frame.of(tokenizer, run.max_tokens)
    trainer = CrossTrainer(model, groups, _plan(run, groups), run.train, work, frame, device=run.device)
    trainer.resume()
    last: dict[str, float] = {}

    def heard(line: dict[str, float]) -> None:
        last.update(line)
        report(line)

    trainer.run(heard)
    with new_folder(output, force=force) as part:
        write_cross(trainer.model.cpu().eval(), tokenizer, part)
    return CrossResult(output, len(groups), trainer.step, dict(shards.counts), last)


def _plan(run: CrossRun, groups: Groups) -> list[Ints]:
    """The batches of all passes."""
    plan = [
        rows
        for epoch in range(run.epochs)
        for rows in group_plan(groups, budget=run.data.budget, window=run.data.window, seed=run.seed + epoch)
    ]
    if not plan:
        raise ConfigError(f"{', '.join(run.data.files)}: no query has a negative, and there are no others to draw from")
    return plan


def starting_model(run: CrossRun, root: Path) -> tuple[CrossModel, Tokenizer]:
    """A cross-encoder as it is, or the network of another model with a new head, drawn with the seed of the run."""
    local = root / run.model
    source = find(local if local.is_dir() else run.model, run.revision)
    tokenizer = Tokenizer.load(source.folder)
    own = (source.folder / "threefold.json").is_file()
    if not own and _has_classifier(source.folder):
        model = load_cross(source.folder).model
        _check_room(run, model.config.network)
        model.config = CrossConfig(model.config.network, run.max_tokens, model.config.token_types)
    else:
        loaded = load(source.folder, None if own else "cls").model
        network = loaded.config.network
        _check_room(run, network)
        bert = network.first_position == 0
        if bert and network.types < 2:
            raise CheckpointError(f"{source.name} has {network.types} token type; pairs of a BERT need 2")
        model = CrossModel(CrossConfig(network, run.max_tokens, token_types=bert))
        initialise(model.head, seed=run.seed)
        model.network = loaded.network
    return _in_memory(model), tokenizer


def _check_room(run: CrossRun, network: NetworkConfig) -> None:
    if run.max_tokens > network.max_tokens:
        raise ConfigError(f"max_tokens is {run.max_tokens}; {run.model} reads {network.max_tokens}")


def _has_classifier(folder: Path) -> bool:
    return any(name.startswith("classifier.") for name in read_backbone(folder).tensors)


def _in_memory(model: CrossModel) -> CrossModel:
    """Weights of their own: those that were loaded are pages of the file."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    return model
