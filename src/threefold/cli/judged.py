"""What `evaluate`, `tune` and `choose` share: the encoder that is judged, the tasks, the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from threefold.cli import options
from threefold.errors import InputError
from threefold.score import PUBLISHED, Weights

if TYPE_CHECKING:
    from threefold.evaluate.task import Task
    from threefold.evaluate.tasks import Benchmark
    from threefold.retrieve.tune import Tuned
    from threefold.text.protocol import ModelCard, TextEncoder

Vectors = Annotated[
    str,
    typer.Option(help="Saved vectors instead of a model: DOCUMENTS.parquet,QUERIES.parquet of `threefold encode`."),
]
Endpoint = Annotated[
    str, typer.Option(help="OpenAI-compatible address instead of a model here, such as https://host/v1; with --model.")
]
ApiKey = Annotated[str, typer.Option(help="Key of the endpoint.", envvar=["THREEFOLD_API_KEY", "OPENAI_API_KEY"])]
SentenceTransformer = Annotated[
    bool, typer.Option("--sentence-transformer", help="Load --model by sentence-transformers (dense only).")
]
Mcls = Annotated[
    int,
    typer.Option(help="Read documents with `<s>` before every so many tokens (the paper: 256); 0: as they are.", min=0),
]
Split = Annotated[str, typer.Option(help="Split of the judgements. Default: the one that papers report, or test.")]
Data = Annotated[
    Path | None,
    typer.Option(
        parser=options.path_of,
        help="Folder of copies of hub data sets, FOLDER/owner/name; nothing is downloaded then.",
    ),
]
Language = Annotated[
    str, typer.Option(help="Language of the sets for bm25-words, such as de; `name`: the last part of a set's name.")
]

#: The split of one's own data that figures are reported on.
REPORTED = "test"


class Source(NamedTuple):
    """A task and the benchmark that it belongs to, if it has a name."""

    task: Task
    benchmark: Benchmark | None


class Announced(NamedTuple):
    """What is known of a task before it is read.

    by_answers  it is judged by answer strings
    reported    the split that figures are reported on
    """

    name: str
    by_answers: bool = False
    reported: str = REPORTED


def open_judged(
    model: str | None,
    revision: str | None,
    device: str,
    precision: str,
    *,
    vectors: str = "",
    endpoint: str = "",
    api_key: str = "",
    sentence_transformer: bool = False,
    mcls: int = 0,
) -> TextEncoder:
    """The encoder that the options name: ours unless they say otherwise."""
    ways = {
        "--vectors": vectors,
        "--endpoint": endpoint,
        "--sentence-transformer": sentence_transformer,
        "--mcls": mcls,
    }
    chosen = [name for name, on in ways.items() if on]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other")
    if vectors:
        return _saved(vectors)
    if (endpoint or sentence_transformer) and not model:
        raise InputError("--endpoint and --sentence-transformer need the name of a --model")
    if endpoint and model:
        from threefold.integrations.openai import RemoteEncoder

        return RemoteEncoder(endpoint, model, api_key=api_key or None)
    if sentence_transformer and model:
        from threefold.integrations.sentence_transformers import SentenceTransformerEncoder

        return SentenceTransformerEncoder(model, device=None if device == "auto" else device, revision=revision)
    encoder = options.open_encoder(model, revision, device, precision)
    if mcls:
        from threefold.encoder.long import MclsEncoder

        return MclsEncoder(encoder, mcls)
    return encoder


def _saved(vectors: str) -> TextEncoder:
    from threefold.integrations.saved import SavedVectors

    paths = [Path(part.strip()) for part in vectors.split(",") if part.strip()]
    if len(paths) not in (1, 2) or len(paths) != vectors.count(",") + 1:
        raise InputError(f"--vectors {vectors!r}: expected DOCUMENTS.parquet, or DOCUMENTS.parquet,QUERIES.parquet")
    return SavedVectors(*paths)


def sources(
    names: list[str], *, split: str = "", data: Path | None = None, lenient: bool = False, language: str = ""
) -> Iterator[Source]:
    """Every task that the arguments name, one at a time: `miracl:sw`, `mteb:NFCorpus`, or a path in BEIR layout."""
    from threefold.evaluate.beir import iter_tasks
    from threefold.evaluate.tasks import is_name, named_tasks

    for name in names:
        if is_name(name) and not Path(name).exists():
            for named in named_tasks(name):
                yield Source(named.load(split or None, data), named.benchmark)
        elif name.startswith("mteb:"):
            from threefold.integrations.mteb import load_mteb

            for task in load_mteb(name.removeprefix("mteb:"), split=split or None):
                yield Source(_speaking(task, language), None)
        else:
            for task in iter_tasks(Path(name), split=split or REPORTED, strict=not lenient):
                yield Source(_speaking(task, language), None)


def announced(names: Iterable[str], *, split: str = "") -> Iterator[Announced]:
    """The tasks of `sources`, without reading them. Those of mteb are not known before they are."""
    from threefold.evaluate.beir import task_names
    from threefold.evaluate.tasks import named_tasks

    for name in names:
        if is_path(name):
            yield from map(Announced, task_names(Path(name)))
        elif not name.startswith("mteb:"):
            for named in named_tasks(name):
                named.split(split)  # refused here, if there is none of that name
                yield Announced(named.name, named.by_answers, named.split())


def is_path(name: str) -> bool:
    """Whether an argument is a path in BEIR layout, and no benchmark."""
    from threefold.evaluate.tasks import is_name

    return not name.startswith("mteb:") and (Path(name).exists() or not is_name(name))


def require_target(path: Path, sets: Iterable[str]) -> None:
    """The place of a result, which must not be that of a file of the sets."""
    options.require_folder_of(path)
    for name in filter(is_path, sets):
        if path.resolve() == Path(name).resolve() or _is_data(path):
            raise InputError(f"{path} is one of the files of {name}; choose another name for the result")


def _is_data(path: Path) -> bool:
    """Whether a file is there, named as those of a data set in BEIR layout are."""
    if not path.exists():
        return False
    return path.name.startswith(("corpus.", "queries.", "qrels.")) or path.parent.name == "qrels"


def weights_of(text: str, card: ModelCard) -> Weights | Tuned | None:
    """`@file` of `threefold tune`, `model`, the name of a published set, or numbers; None where nothing is said."""
    if text.startswith("@"):
        from threefold.retrieve.tune import Tuned

        return Tuned.load(Path(text[1:]))
    if text == "model":
        return Weights(*card.fusion)
    return PUBLISHED.get(text) or options.parse_weights(text)


def settings_of(weights: Weights | Tuned | None, card: ModelCard) -> dict[str, Any]:
    """The settings of a protocol that they are."""
    if weights is None:
        return {}
    if isinstance(weights, Weights):
        return {"weights": weights, "dense_sparse": weights.only("dense", "sparse") if _both(weights) else None}
    return dict(weights.applied(card.hash))


def _both(weights: Weights) -> bool:
    return weights.dense > 0 or weights.sparse > 0


def _speaking(task: Task, language: str) -> Task:
    """The task with its language."""
    from dataclasses import replace

    return replace(task, language=task.name.rpartition("/")[2] if language == "name" else language)
