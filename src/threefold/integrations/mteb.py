"""mteb (2.26 and later): our encoders by its EncoderProtocol, every mode by its SearchProtocol, its tasks as ours.

    mteb.evaluate(MtebEncoder(Encoder()), mteb.get_tasks(["STS17"]))
    mteb.evaluate(MtebSearch(Encoder(), mode="hybrid"), mteb.get_tasks(["NFCorpus"]))

Titles are joined with their texts by a newline, as in the BGE-M3 paper; mteb itself joins by a space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from threefold.errors import EvaluationError, InputError, MissingExtraError, OfflineError
from threefold.evaluate.beir import TEMPLATE, titled
from threefold.evaluate.task import Task
from threefold.hub import offline, switched_on
from threefold.retrieve.exact import Exact
from threefold.retrieve.experiment import Protocol, encode_task
from threefold.retrieve.modes import Mode
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.types import Floats

#: A grade that nobody reads: mteb judges what is found here.
_UNREAD = 1


class MtebEncoder:
    """The dense vectors of an encoder, for every kind of task that mteb has for texts."""

    def __init__(self, encoder: TextEncoder, *, max_tokens: int | None = None) -> None:
        if not encoder.card.dense_dim:
            raise InputError(f"{encoder.card.name} makes no dense vectors, which mteb's encoder protocol is about")
        self._encoder, self._max_tokens = encoder, max_tokens
        self.mteb_model_meta = _meta(encoder.card, "dense")

    def encode(self, inputs: Any, *, prompt_type: Any = None, **_: Any) -> Floats:
        """(n, d) float32 for all texts of a data loader."""
        kind = getattr(prompt_type, "value", prompt_type)
        encode = {"query": self._encoder.encode_queries, "document": self._encoder.encode_documents}.get(
            kind, self._encoder.encode
        )
        parts = [encode(list(batch["text"]), outputs=("dense",), max_tokens=self._max_tokens).dense for batch in inputs]
        rows: Floats = np.concatenate([np.zeros((0, self._encoder.card.dense_dim), np.float32), *parts])
        return rows

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Floats:
        """Cosines, (n, m), of unit rows; a scalar for two single vectors, which mteb turns into a float."""
        scores: Floats = _rows(embeddings1) @ _rows(embeddings2).T
        return scores.reshape(()) if np.ndim(embeddings1) == np.ndim(embeddings2) == 1 else scores

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Floats:
        """Cosines, (n,)."""
        scores: Floats = np.sum(_rows(embeddings1) * _rows(embeddings2), axis=1)
        return scores


class MtebSearch:
    """One mode of our experiments as a search model: `hybrid` is the paper's "All", exact.

    protocol  depths and weights; its modes are not looked at
    """

    def __init__(self, encoder: TextEncoder, *, mode: Mode = "hybrid", protocol: Protocol | None = None) -> None:
        settings = (protocol or Protocol()).to_dict() | {"modes": [mode]}
        self._encoder, self._mode, self._protocol = encoder, mode, Protocol.from_dict(settings)
        self._documents: dict[str, str] = {}
        self.mteb_model_meta = _meta(encoder.card, mode)

    def index(self, corpus: Any, **_: Any) -> None:
        """Remember the texts; they are encoded together with the queries."""
        self._documents = dict(_texts(corpus))

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """{query id: {document id: score}}, the best `top_k`; of reranking tasks only the given documents.

        A query without given documents finds none, as in mteb's own wrappers.
        """
        asked = dict(_texts(queries))
        if top_ranked is not None:
            return {
                query: self._run({query: text}, top_ranked.get(query, []), top_k)[query]
                for query, text in asked.items()
            }
        return self._run(asked, None, top_k)

    def _run(self, asked: Mapping[str, str], among: list[str] | None, top_k: int) -> dict[str, dict[str, float]]:
        documents = self._documents if among is None else {id: self._documents[id] for id in among}
        if not documents or not asked:
            return {query: {} for query in asked}
        task = Task("mteb", documents, asked, {query: {next(iter(documents)): _UNREAD} for query in asked})
        everything = {} if among is None else {"multi_depth": None}
        depth = max(top_k, 100, len(among or ()))
        settings = self._protocol.to_dict() | {"depth": depth, "measures": []} | everything
        protocol = Protocol.from_dict(settings)
        encoded = encode_task(task, self._encoder, protocol)
        tokenizer = self._encoder.tokenizer if self._mode == "bm25" else None
        found = Exact(task, protocol, *encoded).runs(tokenizer)[self._mode]
        return {query: _filled(scores, among or (), top_k) for query, scores in found.items()}


def load_mteb(name: str, *, split: str | None = None) -> Iterator[Task]:
    """The subsets of a retrieval task of mteb as our tasks, `mteb:NAME/SUBSET`; mteb downloads them."""
    if offline() and not switched_on("HF_HUB_OFFLINE"):  # which mteb heeds by itself
        raise OfflineError(
            f"mteb downloads {name}, and THREEFOLD_OFFLINE forbids it. HF_HUB_OFFLINE=1 makes mteb read its own cache"
        )
    try:
        task = _mteb().get_task(name)
    except KeyError as error:
        raise EvaluationError(f"mteb has no task {name!r}: {error.args[0]}") from None
    if task.metadata.type != "Retrieval":
        raise EvaluationError(f"mteb's {name} is a task of kind {task.metadata.type}; only Retrieval can be run here")
    yield from from_mteb(task, split=split)


def from_mteb(task: Any, *, split: str | None = None) -> Iterator[Task]:
    """A loaded or loadable retrieval task of mteb, subset by subset."""
    task.load_data()
    wanted = split or task.metadata.eval_splits[0]
    for subset, splits in task.dataset.items():
        if wanted not in splits:
            raise EvaluationError(f"mteb's {task.metadata.name} has no split {wanted!r}; it has {', '.join(splits)}")
        data = splits[wanted]
        queries, qrels = dict(_texts(data["queries"])), data["relevant_docs"]
        yield Task(
            name=f"mteb/{task.metadata.name}" + ("" if subset == "default" else f"/{subset}"),
            documents=dict(_texts(data["corpus"])),
            queries={query: text for query, text in queries.items() if query in qrels},
            qrels={query: dict(grades) for query, grades in qrels.items() if query in queries},
            template=TEMPLATE,
            ignore_identical_ids=bool(getattr(task, "ignore_identical_ids", False)),
        )


def _texts(rows: Any) -> Iterator[tuple[str, str]]:
    """(id, text): title and text, a query and its instruction, or the turns of a conversation as mteb joins them."""
    for row in rows:
        title, text, instruction = row.get("title") or "", row["text"], row.get("instruction") or ""
        if isinstance(text, list):
            text = "; ".join(f"{one['role']}: {one['content']}" if isinstance(one, dict) else one for one in text)
            text = f"{instruction} {text}".strip()
        elif instruction:
            text = f"{text} {instruction}"
        yield str(row["id"]), titled(title, text)


def _filled(scores: Mapping[str, float], among: Iterable[str], top_k: int) -> dict[str, float]:
    """The best, cut last: a mode that needs shared terms leaves given documents out, and mteb wants them, with 0."""
    rest = dict.fromkeys(among, 0.0).items()
    return dict([*scores.items(), *((id, none) for id, none in rest if id not in scores)][:top_k])


def _rows(vectors: Any) -> Floats:
    """(n, d) float32, also of a single vector."""
    rows: Floats = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    return rows


def _meta(card: ModelCard, mode: str) -> Any:
    name = card.name.replace("/", "__")
    facts = {
        "name": f"threefold/{name}-{mode}",
        "revision": card.revision or card.hash,
        "model_type": ["dense" if mode == "dense" else "hybrid"],
        "embed_dim": card.dense_dim or None,
        "max_tokens": card.max_tokens,
    }
    _mteb()
    from mteb.models.model_meta import ModelMeta

    return ModelMeta.create_empty(overwrites=facts)


def _mteb() -> Any:
    try:
        import mteb
    except ImportError as error:
        raise MissingExtraError("mteb", "mteb", "a task or model of mteb") from error
    return mteb
