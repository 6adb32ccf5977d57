from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import CORPUS, FakeEncoder

from threefold.errors import ConfigError, EvaluationError, InputError, NumericalError
from threefold.evaluate.task import Task
from threefold.retrieve import blocks, exact
from threefold.retrieve.experiment import MODES, Mode, Outcome, Protocol, available_modes, run_task
from threefold.score import Weights, dbsf, maxsim, rrf, sparse_scores
from threefold.text.tokenizer import Tokenizer
from threefold.types import Encoded

WORDS = CORPUS[0].replace(".", "").split() + CORPUS[1].split()[:8]


def make_task(documents: int = 30, queries: int = 7, seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    texts = {f"d{i:02}": " ".join(rng.choice(WORDS, size=rng.integers(2, 9))) for i in range(documents)}
    asked = {f"q{i}": " ".join(rng.choice(WORDS, size=3)) for i in range(queries)}
    return Task("toy", texts, asked, {query: {f"d{i:02}": 1} for i, query in enumerate(asked)})


def encode(task: Task, encoder: FakeEncoder) -> tuple[Encoded, Encoded]:
    return encoder.encode_documents(list(task.documents.values())), encoder.encode_queries(list(task.queries.values()))


def by_definition(task: Task, encoder: FakeEncoder, weights: Weights) -> dict[str, list[dict[str, float]]]:
    """{mode: [{document: score} per query]} one pair at a time."""
    docs, queries = encode(task, encoder)
    assert docs.dense is not None
    assert queries.dense is not None
    assert docs.sparse is not None
    assert queries.sparse is not None
    assert docs.multi is not None
    assert queries.multi is not None
    found: dict[str, list[dict[str, float]]] = {
        mode: [] for mode in ("dense", "sparse", "multi", "dense+sparse", "hybrid")
    }
    for i in range(len(queries)):
        dense, sparse = docs.dense @ queries.dense[i], sparse_scores(queries.sparse[i], docs.sparse)
        multi = maxsim(queries.multi[i], docs.multi)
        both = (weights.dense * dense + weights.sparse * sparse) / (weights.dense + weights.sparse)
        everything = (weights.dense * dense + weights.sparse * sparse + weights.multi * multi) / weights.total
        for mode, scores in zip(found, (dense, sparse, multi, both, everything), strict=True):
            found[mode].append(dict(zip(task.documents, scores.tolist(), strict=True)))
    return found


def run_of(outcome: Outcome, mode: Mode, query: str) -> dict[str, float]:
    return dict(outcome.runs[mode][query])


# ---- scores -------------------------------------------------------------------------------------------------


def test_every_mode_equals_the_definition_pair_by_pair(encoder: FakeEncoder) -> None:
    task, weights = make_task(), Weights(0.4, 0.2, 0.4)
    outcome = run_task(task, encoder, Protocol(weights=weights, multi_depth=None))
    for mode, expected in by_definition(task, encoder, weights).items():
        for query, scores in zip(task.queries, expected, strict=True):
            found = run_of(outcome, mode, query)
            if mode == "sparse":
                scores = {id: score for id, score in scores.items() if score > 0}
            assert found == pytest.approx(scores, abs=1e-6)
            assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("wide", [0, 4], ids=["candidates", "wide"])
def test_multi_reranks_the_best_of_dense(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    monkeypatch.setattr(exact, "WIDE", wide)
    task, weights = make_task(), Weights()
    outcome = run_task(task, encoder, Protocol(multi_depth=10))
    expected = by_definition(task, encoder, weights)
    for i, query in enumerate(task.queries):
        kept = list(run_of(outcome, "dense", query))[:10]
        for mode in ("multi", "hybrid"):
            wanted = {id: expected[mode][i][id] for id in kept}
            assert run_of(outcome, mode, query) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("documents", [1, 7, 30])
@pytest.mark.parametrize("multi_depth", [None, 10])
def test_blocks_of_any_size_give_the_same_runs(
    encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, multi_depth: int | None, documents: int
) -> None:
    task, protocol = make_task(), Protocol(modes=MODES, multi_depth=multi_depth)
    whole = run_task(task, encoder, protocol)
    monkeypatch.setattr(exact, "BLOCK_SCORES", 60)  # two queries
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", documents)
    parts = run_task(task, encoder, protocol)
    for mode in MODES:
        for query in task.queries:
            assert run_of(parts, mode, query) == pytest.approx(run_of(whole, mode, query), abs=1e-6)


def test_equal_texts_are_encoded_once_and_tied_by_id(encoder: FakeEncoder) -> None:
    texts = {"b": "quick fox", "c": "lazy dog", "a": "quick fox"}
    task = Task("twice", texts, {"q": "quick fox", "p": "quick fox"}, {"q": {"b": 1}, "p": {"c": 1}})
    outcome = run_task(task, encoder, Protocol(modes=MODES, multi_depth=2))
    assert encoder.calls == [["quick fox", "lazy dog"], ["quick fox"]]
    for mode in MODES:
        assert list(outcome.runs[mode]["q"])[:2] == ["a", "b"]
        assert outcome.runs[mode]["q"] == outcome.runs[mode]["p"]
        assert outcome.judgements[mode].values["MRR@10"]["q"] == 1 / 2


def test_own_weights_of_dense_and_sparse(encoder: FakeEncoder) -> None:
    task, weights = make_task(), Weights(0.2, 0.8, 0.0)
    outcome = run_task(task, encoder, Protocol(modes=("dense+sparse",), dense_sparse=weights))
    for query, scores in zip(task.queries, by_definition(task, encoder, weights)["dense+sparse"], strict=True):
        assert run_of(outcome, "dense+sparse", query) == pytest.approx(scores, abs=1e-6)


def test_rankings_are_fused_without_being_asked_for(encoder: FakeEncoder) -> None:
    task, protocol = make_task(), Protocol(modes=("rrf", "dbsf"), multi_depth=10)
    heads = run_task(task, encoder, Protocol(modes=("dense", "sparse", "multi"), multi_depth=10)).runs
    outcome = run_task(task, encoder, protocol)
    assert set(outcome.runs) == {"rrf", "dbsf"}
    for query in task.queries:
        lists = [heads[mode][query] for mode in ("dense", "sparse", "multi")]
        assert run_of(outcome, "rrf", query) == dict(rrf([list(scores) for scores in lists]))
        assert run_of(outcome, "dbsf", query) == dict(dbsf([list(scores.items()) for scores in lists]))


def test_depth_cuts_the_runs(encoder: FakeEncoder) -> None:
    outcome = run_task(make_task(), encoder, Protocol(modes=MODES, depth=10, measures=("nDCG@10",)))
    assert {len(run) for mode in MODES for run in outcome.runs[mode].values()} <= set(range(11))


def test_the_own_document_is_dropped_only_where_the_task_says_so(encoder: FakeEncoder) -> None:
    texts = {"x": "quick fox", "y": "quick fox jumps", "z": "lazy dog"}
    task = Task("own", texts, {"x": "quick fox"}, {"x": {"y": 1}})
    for mode in MODES:
        for depth in (1, 2, None):
            protocol = Protocol(modes=(mode,), multi_depth=depth)
            assert next(iter(run_task(task, encoder, protocol).runs[mode]["x"])) == "x"
            without = run_task(replace(task, ignore_identical_ids=True), encoder, protocol).runs[mode]["x"]
            assert "x" not in without
            assert next(iter(without)) == "y"


# ---- rows ---------------------------------------------------------------------------------------------------


def test_rows_say_what_was_done(encoder: FakeEncoder) -> None:
    outcome = run_task(replace(make_task(), warnings={"odd": 2}), encoder, Protocol(modes=MODES, multi_depth=10))
    assert [row.mode for row in outcome.rows] == list(MODES)
    assert [row.protocol for row in outcome.rows] == [
        "exact scores, over all documents",
        "exact scores, over all documents",
        "exact scores, over the dense top 10",
        "weighted sum of dense 1, sparse 0.3, over all documents",
        "weighted sum of dense 1, sparse 0.3, multi 1, over the dense top 10",
        "Lucene's BM25 (k1 1.5, b 0.75) over the model's own tokens, whole texts",
        "Lucene's BM25 (k1 1.5, b 0.75) over words in lower case, pairs of characters in scripts without spaces, "
        "no stemming, whole texts",
        "reciprocal rank fusion (k 60) of dense, sparse and multi, each to rank 1,000; multi over the dense top 10",
        "distribution based fusion of dense, sparse and multi, each to rank 1,000; multi over the dense top 10",
    ]
    for row in outcome.rows:
        assert (row.task, row.documents, row.queries, row.warnings) == ("toy", 30, 7, {"odd": 2})
        assert set(row.values) == {"nDCG@10", "Recall@10", "Recall@100", "MRR@10", "accuracy@1"}
        assert set(row.seconds) == {"encode", "score", "judge"}


def test_figures_worked_by_hand(encoder: FakeEncoder) -> None:
    """Each query is a copy of one document; it is judged once right, once wrong."""
    texts = {"a": "quick brown fox", "b": "lazy dog", "c": "dense sparse multi"}
    task = Task("copies", texts, {"p": texts["a"], "q": texts["b"]}, {"p": {"a": 1}, "q": {"missing": 1}})
    for row in run_task(task, encoder).rows:
        assert set(row.values.values()) == {(1 + 0) / 2}


def test_truncated_texts_are_counted(encoder: FakeEncoder) -> None:
    task = make_task()
    lengths = encoder.tokenizer.count(list(task.documents.values()))
    asked = encoder.tokenizer.count(list(task.queries.values()))
    outcome = run_task(task, encoder, Protocol(modes=("dense", "bm25"), max_tokens=12, max_query_tokens=10))
    dense, bm25 = outcome.rows
    assert 0 < (lengths > 12).sum() < 30
    expected = {"documents truncated": int((lengths > 12).sum()), "queries truncated": int((asked > 10).sum())}
    assert dense.warnings == {what: count for what, count in expected.items() if count}
    assert bm25.warnings == {}


def test_empty_texts_go_through(encoder: FakeEncoder) -> None:
    task = Task("empty", {"a": "", "b": "lazy dog"}, {"q": "", "p": "dog"}, {"q": {"a": 1}, "p": {"b": 1}})
    outcome = run_task(task, encoder)
    assert outcome.runs["bm25"]["q"] == {}
    assert outcome.runs["sparse"]["q"] == {}
    assert next(iter(outcome.runs["dense"]["q"])) == "a"
    assert next(iter(outcome.runs["hybrid"]["p"])) == "b"


def test_bm25_alone_never_asks_the_model(encoder: FakeEncoder) -> None:
    outcome = run_task(make_task(), encoder, Protocol(modes=("bm25",)))
    assert encoder.calls == []
    assert outcome.rows[0].values["Recall@100"] > 0


# ---- cut vectors, words, corpora on disk --------------------------------------------------------------------


def test_cut_vectors_are_made_unit_again(encoder: FakeEncoder) -> None:
    task = make_task()
    outcome = run_task(task, encoder, Protocol(modes=("dense@4", "dense")))
    docs, queries = encode(task, encoder)
    assert docs.dense is not None
    assert queries.dense is not None
    for query, row in zip(task.queries, queries.dense, strict=True):
        expected = {
            id: float(row[:4] @ doc[:4] / np.linalg.norm(row[:4]) / np.linalg.norm(doc[:4]))
            for id, doc in zip(task.documents, docs.dense, strict=True)
        }
        assert run_of(outcome, "dense@4", query) == pytest.approx(expected, abs=1e-6)
    assert outcome.rows[0].protocol == "exact scores of the first 4 dimensions, over all documents"
    with pytest.raises(ConfigError, match="mode 'dense@16': the dense vectors of fake have 16 dimensions"):
        run_task(task, encoder, Protocol(modes=("dense@16",)))


def test_words_find_what_stems_make_equal(encoder: FakeEncoder) -> None:
    texts = {"a": "she trains the heads", "b": "a lazy dog"}
    task = Task("stems", texts, {"q": "training a head"}, {"q": {"a": 1}}, language="en")
    outcome = run_task(task, encoder, Protocol(modes=("bm25-words",)))
    assert list(outcome.runs["bm25-words"]["q"]) == ["a"]
    assert "Snowball's english stems" in outcome.rows[0].protocol
    assert run_task(replace(task, language=""), encoder, Protocol(modes=("bm25-words",))).runs["bm25-words"] != {}


def test_a_corpus_on_disk_gives_the_same_runs(
    encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_TEXTS", 7)
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", 11)
    task, protocol = make_task(), Protocol(modes=MODES, multi_depth=10)
    memory = run_task(task, encoder, protocol)
    encoder.calls.clear()
    disk = run_task(task, encoder, protocol, cache=tmp_path, stream=True)
    assert [len(texts) for texts in encoder.calls] == [7, 7, 7, 7, 2, 1, 7]
    for mode in MODES:
        for query in task.queries:
            assert run_of(disk, mode, query) == pytest.approx(run_of(memory, mode, query), abs=2e-3)  # float16 rows
    encoder.calls.clear()
    assert run_task(task, encoder, protocol, cache=tmp_path, stream=True).runs == disk.runs
    assert [len(texts) for texts in encoder.calls] == [1, 1]
    with pytest.raises(InputError, match="give a cache folder"):
        run_task(task, encoder, protocol, stream=True)


def test_an_interrupted_corpus_goes_on_where_it_stopped(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal(FakeEncoder):
        left = 3

        def encode_documents(self, *args: object, **options: object) -> Encoded:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode_documents(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "BLOCK_TEXTS", 7)
    task, protocol, encoder = make_task(), Protocol(modes=("dense", "multi")), Mortal(tokenizer)
    with pytest.raises(KeyboardInterrupt):
        run_task(task, encoder, protocol, cache=tmp_path, stream=True)
    with next(tmp_path.glob("*.blocks/dense")).open("ab") as file:
        file.write(b"half a block")
    encoder.left = 99
    encoder.calls.clear()
    outcome = run_task(task, encoder, protocol, cache=tmp_path, stream=True)
    assert [len(texts) for texts in encoder.calls[:-1]] == [7, 2, 1]  # the last: the check that the encoder is the same
    whole = run_task(task, encoder, protocol)
    for query in task.queries:
        assert run_of(outcome, "dense", query) == pytest.approx(run_of(whole, "dense", query), abs=1e-6)


def test_damaged_files_of_a_corpus_are_refused(encoder: FakeEncoder, tmp_path: Path) -> None:
    task, protocol = make_task(), Protocol(modes=("dense",))
    run_task(task, encoder, protocol, cache=tmp_path, stream=True)
    dense = next(tmp_path.glob("*.blocks/dense"))
    dense.write_bytes(dense.read_bytes()[:-4])
    with pytest.raises(EvaluationError, match=r"dense: shorter than state\.json says"):
        run_task(task, encoder, protocol, cache=tmp_path, stream=True)
    (dense.parent / "state.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"state\.json: damaged"):
        run_task(task, encoder, protocol, cache=tmp_path, stream=True)


# ---- what cannot be done ------------------------------------------------------------------------------------


def test_a_mode_that_the_model_lacks_is_refused_by_name(tokenizer: Tokenizer) -> None:
    model = FakeEncoder(tokenizer, name="mini-lm", heads=("dense",))
    assert available_modes(model.card) == ("dense", "bm25")
    with pytest.raises(InputError, match="mode 'hybrid' needs multi and sparse, which the model mini-lm does not make"):
        run_task(make_task(), model, Protocol(modes=("dense", "hybrid")))
    assert [row.mode for row in run_task(make_task(), model, Protocol(modes=("dense", "bm25"))).rows] == [
        "dense",
        "bm25",
    ]


def test_a_rerank_needs_dense_and_an_exact_multi_does_not(tokenizer: Tokenizer) -> None:
    model = FakeEncoder(tokenizer, heads=("multi",))
    with pytest.raises(InputError, match="mode 'multi' needs dense"):
        run_task(make_task(), model, Protocol(modes=("multi",)))
    assert run_task(make_task(), model, Protocol(modes=("multi",), multi_depth=None)).rows[0].mode == "multi"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modes": []}, "modes must name one or more of dense, sparse"),
        ({"modes": ["dense", "dense"]}, "each once"),
        ({"modes": ["colbert"]}, "unknown mode 'colbert'; modes must name one or more of dense, sparse"),
        ({"modes": ["dense@0"]}, "unknown mode 'dense@0'"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"multi_depth": 0}, "multi_depth must be at least 1"),
        ({"depth": 50}, r"depth 50 is less than the measures look at \(100\)"),
        ({"weights": {"dense": 0, "sparse": 0, "multi": 0}}, "all weights are 0"),
        ({"dense_sparse": {"multi": 1}}, "dense_sparse has the weight 1 for multi; it must be 0"),
        ({"wieghts": {}}, "unknown setting 'wieghts'"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol.from_dict(settings)


def test_settings_come_back_from_json() -> None:
    protocol = Protocol(modes=("hybrid",), weights=Weights(0.4, 0.2, 0.4), multi_depth=None, max_tokens=512)
    assert Protocol.from_dict(protocol.to_dict()) == protocol


def test_not_a_number_is_an_error(tokenizer: Tokenizer) -> None:
    class Broken(FakeEncoder):
        def encode(self, *args: object, **options: object) -> Encoded:
            encoded = super().encode(*args, **options)  # type: ignore[arg-type]
            assert encoded.dense is not None
            encoded.dense[0, 0] = np.nan
            return encoded

    with pytest.raises(NumericalError, match="is not a number"):
        run_task(make_task(), Broken(tokenizer), Protocol(modes=("dense",)))


# ---- cache --------------------------------------------------------------------------------------------------


def test_a_second_experiment_reads_the_cache(encoder: FakeEncoder, tmp_path: Path) -> None:
    task = make_task()
    first = run_task(task, encoder, cache=tmp_path / "cache")
    assert [len(texts) for texts in encoder.calls] == [30, 7]
    encoder.calls.clear()
    again = run_task(task, encoder, Protocol(weights=Weights(1, 1, 1)), cache=tmp_path / "cache")
    assert [len(texts) for texts in encoder.calls] == [1, 1]  # only the check that the encoder is the same
    assert again.runs["dense"] == first.runs["dense"]
    assert again.runs["sparse"] == first.runs["sparse"]
    assert again.runs["multi"] == first.runs["multi"]
    assert again.runs["hybrid"] != first.runs["hybrid"]
    assert all(path.suffix == ".npz" for path in (tmp_path / "cache").iterdir())
