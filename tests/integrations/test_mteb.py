"""mteb runs our encoders: the mock tasks that it ships for this, and a retrieval task on local data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import FakeEncoder
from tests.retrieve.test_experiment import make_task

from threefold.errors import EvaluationError, InputError, OfflineError
from threefold.evaluate.task import Task
from threefold.integrations.mteb import MtebEncoder, MtebSearch, from_mteb, load_mteb
from threefold.retrieve.experiment import Protocol, run_task
from threefold.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # mteb and what it imports warn about themselves
]


def mteb_task(ours: Task) -> Any:
    """A retrieval task of mteb that holds the data of one of ours."""
    datasets: Any = pytest.importorskip("datasets")
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local",
            description="local data",
            dataset={"path": "local/local", "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            bibtex_citation="",
        )

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            documents = [{"id": id, "title": "", "text": text} for id, text in ours.documents.items()]
            queries = [{"id": id, "text": text} for id, text in ours.queries.items()]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": datasets.Dataset.from_list(documents),
                        "queries": datasets.Dataset.from_list(queries),
                        "relevant_docs": {query: dict(grades) for query, grades in ours.qrels.items()},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return Local()


def main_score(model: Any, task: Any) -> float:
    import mteb

    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    return float(result.task_results[0].get_score())


def by_trec_eval(task: Task, run: dict[str, dict[str, float]]) -> float:
    """mteb leaves ties to trec_eval, which orders them by id descending."""
    import ir_measures

    qrels = {query: dict(grades) for query, grades in task.qrels.items()}
    return float(ir_measures.calc_aggregate([ir_measures.parse_measure("nDCG@10")], qrels, run).popitem()[1])


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid", "bm25"])
def test_a_retrieval_task_gives_the_figures_of_our_own_evaluation(encoder: FakeEncoder, mode: str) -> None:
    ours, protocol = make_task(documents=60, queries=20), Protocol(modes=(mode,), multi_depth=10)
    run = run_task(ours, encoder, protocol).runs[mode]
    expected = by_trec_eval(ours, {query: dict(scores) for query, scores in run.items()})
    found = main_score(MtebSearch(encoder, mode=mode, protocol=protocol), mteb_task(ours))
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_dense_encoder_by_the_encoder_protocol(encoder: FakeEncoder) -> None:
    ours = make_task(documents=60, queries=20)
    expected = run_task(ours, encoder, Protocol(modes=("dense",))).rows[0].values["nDCG@10"]
    assert main_score(MtebEncoder(encoder), mteb_task(ours)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "search"])
def test_every_mock_task_of_mteb_passes(encoder: FakeEncoder, kind: str) -> None:
    import mteb

    model = MtebEncoder(encoder) if kind == "encoder" else MtebSearch(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = mteb.mock_run(model)
    failed = {name: str(one)[:300] for name, one in results.items() if type(one).__name__ == "TaskError"}
    assert results.all_passed, failed
    assert sum(one is not None for _, one in results.items()) > 3


def test_tasks_of_mteb_as_ours(tmp_path: Path) -> None:
    ours = make_task()
    (found,) = from_mteb(mteb_task(ours))
    assert found.name == "mteb/Local"
    assert (found.documents, found.queries, found.qrels) == (ours.documents, ours.queries, ours.qrels)
    with pytest.raises(EvaluationError, match="mteb's Local has no split 'dev'; it has test"):
        list(from_mteb(mteb_task(ours), split="dev"))


@pytest.mark.parametrize("hub", ["", "0"])
def test_tasks_are_not_downloaded_where_that_is_forbidden(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", hub)
    with pytest.raises(OfflineError, match="mteb downloads NFCorpus, and THREEFOLD_OFFLINE forbids it"):
        next(load_mteb("NFCorpus"))


def test_reranking_scores_exactly_the_given_documents(encoder: FakeEncoder) -> None:
    ours = make_task()
    model = MtebSearch(encoder, mode="sparse")
    rows = [{"id": id, "title": "", "text": text} for id, text in ours.documents.items()]
    model.index(rows)
    queries = [{"id": "q0", "text": ours.queries["q0"]}, {"id": "q1", "text": "zzz"}]
    found = model.search(queries, top_k=10, top_ranked={"q0": ["d03", "d01"], "q1": ["d02"]})
    assert {query: set(scores) for query, scores in found.items()} == {"q0": {"d03", "d01"}, "q1": {"d02"}}


@pytest.mark.parametrize("top_ranked", [{"q0": ["d03"], "q1": []}, {"q0": ["d03"]}], ids=["empty", "absent"])
def test_a_query_without_given_documents_finds_none(encoder: FakeEncoder, top_ranked: dict[str, list[str]]) -> None:
    ours, model = make_task(), MtebSearch(encoder, mode="dense")
    model.index([{"id": id, "title": "", "text": text} for id, text in ours.documents.items()])
    queries = [{"id": id, "text": ours.queries[id]} for id in ("q0", "q1")]
    found = model.search(queries, top_k=10, top_ranked=top_ranked)
    assert {query: list(scores) for query, scores in found.items()} == {"q0": ["d03"], "q1": []}


def test_reranking_invents_no_scores(encoder: FakeEncoder) -> None:
    """What is beyond `top_k`, or beyond the usual depth, has a score of its own, which is not 0."""
    words = ["quick", "brown", "fox", "lazy", "dog"]
    model = MtebSearch(encoder, mode="dense")
    model.index([{"id": f"d{i:03}", "title": "", "text": f"{words[i % 5]} {i}"} for i in range(120)])
    given = {"q": [f"d{i:03}" for i in range(120)]}
    every = model.search([{"id": "q", "text": "lazy dog"}], top_k=10, top_ranked=given)["q"]
    assert len(every) == 10
    assert list(every.values()) == sorted(every.values(), reverse=True)
    assert 0.0 not in every.values()
    every = model.search([{"id": "q", "text": "lazy dog"}], top_k=120, top_ranked=given)["q"]
    assert len(every) == 120
    assert 0.0 not in every.values()
    (best,) = model.search([{"id": "q", "text": "lazy dog"}], top_k=1, top_ranked=given)["q"].items()
    assert best == next(iter(every.items()))


def test_an_encoder_without_dense_vectors(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="makes no dense vectors"):
        MtebEncoder(FakeEncoder(tokenizer, heads=("sparse",)))
