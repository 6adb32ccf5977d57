"""A whole run: training data and a model in, a cross-encoder out that `CrossEncoder` and `transformers` load.

table of settings -> tokens on disk -> candidates -> batches -> training -> folder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import nn

from threefold.config import Settings
from threefold.encoder.checkpoint import load
from threefold.encoder.cross_model import CrossConfig, CrossModel, load_cross
from threefold.encoder.files import read_backbone
from threefold.encoder.network import Network, NetworkConfig, initialise
from threefold.encoder.precision import choose_device
from threefold.encoder.sources import EMBEDDED, find
from threefold.errors import ConfigError
from threefold.export.cross import write_cross
from threefold.export.hugging_face import is_bert
from threefold.export.place import check_free, new_folder
from threefold.text.tokenizer import Tokenizer
from threefold.train.batches import seed_of_pass
from threefold.train.checkpoints import flat
from threefold.train.checks import check_numbers
from threefold.train.cross_groups import Frame, Groups, candidates, group_plan
from threefold.train.cross_loop import CrossSettings, CrossTrainer
from threefold.train.reader import arithmetic
from threefold.train.record import Record
from threefold.train.shards import check_apart, prepare
from threefold.train.tokenise import Limits
from threefold.train.world import processes
from threefold.types import Ints

#: Settings that may change when a run goes on: where, not what. Model and data are compared by their contents, and
#: `train` by the loop.
_FREE: Final = frozenset({"kind", "output", "device", "model", "revision", "data.files", "data.cache", "train"})


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
        check_numbers(self, positive=("budget", "window"))


@dataclass(frozen=True, slots=True)
class CrossRun(Settings):
    """`kind = "cross"` in the settings of `threefold train`.

    output      folder of the finished cross-encoder; `<output>.run` keeps tokens, checkpoint and log
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
        check_numbers(self, not_negative=("seed",))


class Start(NamedTuple):
    """What a run begins with. `hash` is the fingerprint of the model's weights as they were read."""

    model: CrossModel
    tokenizer: Tokenizer
    hash: str


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
    force   replace an earlier model of the output's name, and begin again where the checkpoint is of another run
    report  called with the means over the last `log_every` steps
    """
    if processes() > 1:
        raise ConfigError("a cross-encoder is trained by one process; start threefold train without torchrun")
    run = CrossRun.from_dict(settings, "train")
    device = choose_device(run.device)
    arithmetic(run.train.precision, device)  # refused now, not when the data have been read
    root = base or Path()
    output = root / run.output
    work = output.with_name(f"{output.name}.run")
    check_free(output, force=force)
    start, data = starting_model(run, root), run.data
    files, cache = [root / file for file in data.files], root / data.cache if data.cache else work
    check_apart(files, output, work, cache)
    shards = prepare(files, start.tokenizer, cache, data.limits)
    groups = candidates(shards.table, data.limits.negatives + 1, run.seed)
    frame = Frame.of(start.tokenizer, run.max_tokens)
    trainer = CrossTrainer(
        start.model, groups, _plan(run, groups), run.train, work, frame,
        device=device, origin=_origin(run, start.hash, shards.key),
    )  # fmt: skip
    trainer.resume(anew=force)
    last = _trained(trainer, work, report)
    with new_folder(output, force=force) as part:
        write_cross(trainer.model.cpu().eval(), start.tokenizer, part)
    return CrossResult(output, len(groups), trainer.step, dict(shards.counts), last)


def _trained(trainer: CrossTrainer, work: Path, report: Callable[[dict[str, float]], None]) -> dict[str, float]:
    """Train to the end, with a record in the working folder; the last line, or nothing where the run had ended."""
    if trainer.finished:
        return {}
    work.mkdir(parents=True, exist_ok=True)
    with closing(Record(work, "cross", trainer.step)) as record:

        def heard(line: dict[str, float]) -> None:
            record(line)
            report(line)

        trainer.run(heard)
    return record.last


def _origin(run: CrossRun, model: str, data: str) -> dict[str, Any]:
    """What decides the weights beside `train`: all other settings, and model and data by their fingerprints."""
    table = run.to_dict()
    settings = flat({key: value for key, value in table.items() if key not in _FREE})
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    return kept | {"fingerprint of the model": model, "fingerprint of the data": data}


def _plan(run: CrossRun, groups: Groups) -> list[Ints]:
    """The batches of all passes. Without a contrastive part, queries that no teacher has judged teach nothing."""
    data, only_taught, plan = run.data, run.train.loss.contrast == "none", list[Ints]()
    for epoch in range(run.epochs):
        seed = seed_of_pass(run.seed, epoch)
        plan += group_plan(groups, budget=data.budget, window=data.window, seed=seed, only_taught=only_taught)
    if not plan and only_taught:
        raise ConfigError(
            f"{', '.join(data.files)}: no query has a teacher's scores of its positive and of a negative; "
            "contrast none learns from nothing else"
        )
    if not plan:
        raise ConfigError(f"{', '.join(data.files)}: no query has a negative, and there are no others to draw from")
    return plan


def starting_model(run: CrossRun, root: Path) -> Start:
    """A cross-encoder as it is, or the network of another model with a new head, drawn with the seed of the run."""
    local = root / run.model
    source = find(local if local.is_dir() else run.model, run.revision)
    tokenizer = Tokenizer.load(source.folder)
    own = (source.folder / "threefold.json").is_file()
    if not own and _has_classifier(source.folder):
        model, fingerprint = load_cross(source.folder)
        _check_room(run, model.config.network)
        model.config = CrossConfig(model.config.network, run.max_tokens, model.config.token_types)
    else:
        loaded = load(source.folder, None if own else "cls")
        network, fingerprint = loaded.model.network, loaded.hash
        _check_room(run, network.config)
        bert = is_bert(network.config)
        if bert:
            _add_types(network)
        model = CrossModel(CrossConfig(network.config, run.max_tokens, token_types=bert))
        initialise(model.head, seed=run.seed)
        model.network = network
    return Start(_in_memory(model), tokenizer, fingerprint)


def _add_types(network: Network) -> None:
    """A BERT of one token type gets the second, which a published cross-encoder of that family has: it begins as the
    first, so the network computes what it did, and training tells the query's tokens from the passage's.
    """
    first = network.types.weight.detach()
    if len(first) > 1:
        return
    network.types = nn.Embedding(2, network.config.hidden)
    network.types.weight.data = torch.cat([first, first])
    network.config = replace(network.config, types=2)


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
