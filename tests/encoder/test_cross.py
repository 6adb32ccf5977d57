from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import bge_m3
from tests.encoder.cross_checkpoints import bge_reranker, minilm_reranker, plain_score
from tests.fakes import CORPUS

from threefold.encoder.cross import CrossEncoder
from threefold.errors import CheckpointError, InputError, NumericalError, OfflineError
from threefold.text.tokenizer import Tokenizer

QUERIES = ["What is BGE M3?", "fox", "", "天气"]
TEXTS = ["The quick brown fox.", "", "今天天气很好。", CORPUS[1], "fox " * 15]
PAIRS = [(query, text) for query in QUERIES for text in TEXTS]

#: Float32 against float64 formulas, and one pair alone against the same pair in a batch.
FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def bge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bge-reranker-v2-m3; read only."""
    return bge_reranker(tmp_path_factory.mktemp("models") / "tiny-reranker")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ms-marco-MiniLM; read only."""
    return minilm_reranker(tmp_path_factory.mktemp("models") / "tiny-minilm")


@pytest.fixture(scope="module")
def bge(bge_folder: Path) -> CrossEncoder:
    return CrossEncoder(bge_folder, device="cpu", precision="float32")


@pytest.fixture(scope="module", params=["bge", "bert"])
def each(request: pytest.FixtureRequest) -> tuple[Path, CrossEncoder]:
    folder = request.getfixturevalue(f"{request.param}_folder")
    return folder, CrossEncoder(folder, device="cpu", precision="float32")


# ---- the definition --------------------------------------------------------------------------------------


def test_logits_equal_the_plain_computation(each: tuple[Path, CrossEncoder]) -> None:
    folder, cross = each
    got = cross.score(PAIRS)
    expected = [plain_score(folder, query, text) for query, text in PAIRS]
    assert got.dtype == np.float32
    assert np.ptp(got) > 0.1  # the random weights tell pairs apart
    np.testing.assert_allclose(got, expected, atol=FLOAT32)


def test_order_of_the_two_texts_matters(each: tuple[Path, CrossEncoder]) -> None:
    _, cross = each
    there = cross.score(PAIRS)
    back = cross.score([(text, query) for query, text in PAIRS])
    assert np.abs(there - back).max() > 1e-2


def test_normalized_scores_are_the_sigmoid(bge: CrossEncoder) -> None:
    logits = bge.score(PAIRS)
    normalized = bge.score(PAIRS, normalize=True)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6)


def test_one_query_and_texts_are_pairs(bge: CrossEncoder) -> None:
    np.testing.assert_allclose(
        bge.score("fox", TEXTS), bge.score([("fox", text) for text in TEXTS]), atol=0
    )  # fmt: skip


def test_no_pairs(bge: CrossEncoder) -> None:
    assert bge.score([]).shape == bge.score("fox", []).shape == (0,)
    assert bge.score([]).dtype == np.float32
    judged = bge.judge("fox", [], normalize=True)
    assert (judged.scores.shape, judged.tokens.shape, judged.truncated.shape) == ((0,), (0,), (0,))


@settings(deadline=None, max_examples=20)
@given(
    pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=8),
    budget=st.sampled_from([1, 30, 200, 100_000]),
    data=st.data(),
)
def test_a_pair_does_not_depend_on_its_neighbours_their_order_or_the_budget(
    bge_folder: Path, pairs: list[tuple[str, str]], budget: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(pairs))))
    cross = CrossEncoder(bge_folder, device="cpu", precision="float32", budget=budget)
    alone = np.concatenate([cross.score([pair]) for pair in pairs])
    np.testing.assert_allclose(cross.score([pairs[i] for i in order]), alone[order], atol=FLOAT32)


def test_16_bits_stay_close_and_the_head_stays_exact(bge_folder: Path, bge: CrossEncoder) -> None:
    half = CrossEncoder(bge_folder, device="cpu", precision="bfloat16")
    assert half._model.head.out.weight.dtype == torch.float32
    assert half._model.network.get_parameter("layers.0.up.weight").dtype == torch.bfloat16
    np.testing.assert_allclose(half.score(PAIRS), bge.score(PAIRS), atol=0.15)


def test_four_threads_get_the_same(bge: CrossEncoder) -> None:
    expected = bge.score(PAIRS)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: bge.score(PAIRS), range(8)):
            np.testing.assert_allclose(got, expected, atol=1e-6)


# ---- limits ----------------------------------------------------------------------------------------------


def test_pairs_that_are_cut_are_reported(bge: CrossEncoder, caplog: pytest.LogCaptureFixture) -> None:
    long = "fox " * 50
    judged = bge.judge([("fox", "dog"), ("fox", long), (long, "dog")], max_tokens=24)
    assert judged.truncated.tolist() == [False, True, True]
    assert judged.tokens.tolist()[1] == 24
    counted = bge.tokenizer.encode_pairs(["fox"], ["dog"], max_tokens=24).lengths
    assert judged.tokens[0] == counted[0]
    with caplog.at_level(logging.WARNING):
        bge.score("fox", [long, "dog"], max_tokens=24)
    assert "1 of 2 pairs were longer than is read and were cut" in caplog.text


def test_only_what_is_read_counts(bge: CrossEncoder) -> None:
    long = "the lazy dog jumps over the quick brown fox " * 9
    ids = bge.tokenizer.encode_pairs(["fox"], [long], max_tokens=24)[0]
    read = bge.tokenizer.decode(ids[4:].tolist())
    assert bge.tokenizer.encode_pairs(["fox"], [read], max_tokens=99)[0].tolist() == ids.tolist()
    np.testing.assert_allclose(bge.score("fox", [long], max_tokens=24), bge.score("fox", [read]), atol=FLOAT32)


def test_the_longest_pair(bert_folder: Path, bge: CrossEncoder) -> None:
    bert = CrossEncoder(bert_folder, device="cpu", precision="float32")
    assert (bert.max_tokens, bge.max_tokens) == (64, 8192)
    assert bert.judge("fox", ["fox " * 500]).tokens.tolist() == [64]
    assert bge.judge("fox", ["fox " * 9_000]).tokens.tolist() == [8192]
    with pytest.raises(InputError, match="reads at most 64 tokens; got max_tokens=65"):
        bert.score("fox", ["dog"], max_tokens=65)


def test_equal_texts_are_tokenized_once(bge: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    encodings = Tokenizer._encodings

    def counted(self: Tokenizer, texts: Any) -> Any:
        read.extend(texts)
        return encodings(self, texts)

    monkeypatch.setattr(Tokenizer, "_encodings", counted)
    bge.score("fox", ["dog", "cat"] * 10)
    assert sorted(read) == ["cat", "dog", "fox"]


def test_progress_counts_every_pair_and_token(bge_folder: Path) -> None:
    cross = CrossEncoder(bge_folder, device="cpu", precision="float32", budget=60)
    seen: list[tuple[int, int]] = []
    judged = cross.judge(PAIRS, progress=lambda pairs, tokens: seen.append((pairs, tokens)))
    assert len(seen) > 1
    assert [sum(column) for column in zip(*seen, strict=True)] == [len(PAIRS), int(judged.tokens.sum())]


def test_pairs_that_can_be_read_only_once(bge: CrossEncoder) -> None:
    expected = bge.score([("fox", "dog"), ("fox", "cat")])
    assert bge.score(zip(["fox", "fox"], ["dog", "cat"], strict=True)).tolist() == expected.tolist()  # type: ignore[arg-type]
    assert bge.score("fox", iter(["dog", "cat"])).tolist() == expected.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fox",), "a query needs a list of texts to score; got none"),
        (("fox", "dog"), "a query needs a list of texts to score; got one text"),
        (([("fox", "dog")], ["dog"]), r"give one query and texts, or pairs \(query, text\) alone"),
        ((["fox", "dog"],), r"pair 0 must be \(query, text\); got 'fox'"),
        (([("fox", "dog", "cat")],), r"pair 0 must be \(query, text\)"),
        (("fox", ["dog", None]), "text 1 must be a string; got NoneType"),
        (([(1, "dog")],), "text 0 must be a string; got int"),
        (([5],), r"pair 0 must be \(query, text\); got 5"),
    ],
)
def test_what_is_no_pair_is_refused(bge: CrossEncoder, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bge.score(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"precision": "float16", "device": "cpu"}, "float16 on a CPU is emulated"),
        ({"budget": 0}, "budget must be at least 1; got 0"),
        ({"revision": "main"}, "is a folder and has no revisions"),
    ],
)
def test_construction_checks_its_options(bge_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CrossEncoder(bge_folder, **options)


# ---- checkpoints -----------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


WEIGHT = "classifier.out_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"is not a cross-encoder: it has no config\.json"),
    "no head": (
        lambda f: edit(f, lambda s: s.pop(WEIGHT)),
        rf"is not a cross-encoder: .*model\.safetensors lacks the tensor {WEIGHT}",
    ),
    "half a head": (
        lambda f: edit(f, lambda s: s.pop("classifier.dense.bias")),
        r"lacks the tensor classifier\.dense\.bias",
    ),
    "three labels": (
        lambda f: edit(f, lambda s: s.update({WEIGHT: torch.zeros(3, 32)})),
        r"has 3 labels; a cross-encoder that ranks has 1",
    ),
    "head of another size": (
        lambda f: edit(f, lambda s: s.update({"classifier.dense.weight": torch.zeros(32, 31)})),
        r"classifier\.dense\.weight has shape \(32, 31\), the configuration asks for \(32, 32\)",
    ),
    "missing layer": (
        lambda f: edit(f, lambda s: s.pop("roberta.encoder.layer.1.output.dense.weight")),
        r"lacks the tensor roberta\.encoder\.layer\.1\.output\.dense\.weight",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused_by_name(bge_folder: Path, tmp_path: Path, case: str) -> None:
    damage, message = BROKEN[case]
    shutil.copytree(bge_folder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        CrossEncoder(tmp_path / "model", device="cpu")


def test_a_bert_without_token_types_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"type_vocab_size": 1}))
    with pytest.raises(CheckpointError, match="type_vocab_size is 1; pairs of a BERT need 2"):
        CrossEncoder(tmp_path / "model", device="cpu")


def test_an_embedding_model_is_no_cross_encoder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a cross-encoder: .*lacks the tensor classifier\.out_proj"):
        CrossEncoder(bge_m3(tmp_path / "model"), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(bge_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bge_folder, tmp_path / "model")
    name = "roberta.embeddings.word_embeddings.weight"
    edit(tmp_path / "model", lambda state: state.update({name: state[name][:50].clone()}))
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 50}))
    with pytest.raises(CheckpointError, match="they belong to different models"):
        CrossEncoder(tmp_path / "model", device="cpu")


def test_fingerprints_tell_models_apart(bge: CrossEncoder, bge_folder: Path, tmp_path: Path) -> None:
    assert CrossEncoder(bge_folder, device="cpu", precision="bfloat16").hash == bge.hash
    assert CrossEncoder(bge_reranker(tmp_path / "other", seed=1), device="cpu").hash != bge.hash
    assert str(bge_folder) in repr(bge)


def test_offline_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THREEFOLD_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match="bge-reranker-v2-m3 is not in the local cache and offline mode is on"):
        CrossEncoder(device="cpu")


# ---- NaN -------------------------------------------------------------------------------------------------


def test_overflow_in_16_bits_is_computed_again_in_float32(
    bge_folder: Path, bge: CrossEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    half = CrossEncoder(bge_folder, device="cpu", precision="bfloat16")
    with torch.inference_mode():
        half._model.head.out.bias.fill_(torch.inf)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(half.score(PAIRS), bge.score(PAIRS), atol=FLOAT32)
        half.score(PAIRS[:1])
    assert caplog.text.count("overflows in bfloat16") == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_damaged_weights_are_an_error(bge_folder: Path, tmp_path: Path, precision: Any) -> None:
    shutil.copytree(bge_folder, tmp_path / "model")
    edit(tmp_path / "model", lambda state: state["classifier.dense.bias"].fill_(torch.nan))
    cross = CrossEncoder(tmp_path / "model", device="cpu", precision=precision)
    with pytest.raises(NumericalError, match="gave NaN or infinity in float32: its weights are damaged"):
        cross.score("fox", ["dog"])


# ---- other people's code ---------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "padded batch"])
def test_transformers_says_the_same(each: tuple[Path, CrossEncoder], batch: bool) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, cross = each
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    groups = [PAIRS] if batch else [[pair] for pair in PAIRS]
    theirs = []
    for group in groups:
        queries, texts = zip(*group, strict=True)
        inputs = tokenizer(list(queries), list(texts), padding=True, return_tensors="pt")
        with torch.no_grad():
            theirs.extend(model(**inputs).logits.view(-1).tolist())
    np.testing.assert_allclose(cross.score(PAIRS), theirs, atol=FLOAT32)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_flag_embedding_says_the_same(bge_folder: Path, bge: CrossEncoder) -> None:
    """Short pairs, and texts that are cut.

    Not compared: with transformers 5 it reads an empty text as no text, and cuts pairs after decoding them again.
    """
    from FlagEmbedding import FlagReranker

    reference = FlagReranker(str(bge_folder), devices="cpu", use_fp16=False)
    clean = [(query, text) for query, text in PAIRS if text and "M3" not in query]
    np.testing.assert_allclose(bge.score(clean), reference.compute_score(clean, max_length=8192), atol=FLOAT32)
    long = [("fox", " ".join(CORPUS[:3]))] * 2
    theirs = reference.compute_score(long, max_length=40, normalize=True)
    assert bge.judge(long, max_tokens=40).truncated.all()
    np.testing.assert_allclose(bge.score(long, max_tokens=40, normalize=True), theirs, atol=FLOAT32)


# ---- published values ------------------------------------------------------------------------------------

PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)


@pytest.mark.slow
@pytest.mark.skipif("THREEFOLD_BGE_RERANKER" not in os.environ, reason="THREEFOLD_BGE_RERANKER names no folder")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_published_values_of_bge_reranker_v2_m3(precision: Any) -> None:
    """Reference in float16 on a GPU (m3.md, section 7)."""
    cross = CrossEncoder(os.environ["THREEFOLD_BGE_RERANKER"], precision=precision)
    pairs = [("query", "passage"), ("what is panda?", "hi"), ("what is panda?", PANDA)]
    bound = 0.02 if precision == "float32" else 0.25
    np.testing.assert_allclose(cross.score(pairs), [-5.65234375, -8.1875, 5.26171875], atol=bound)
    np.testing.assert_allclose(cross.score(pairs, normalize=True), [0.003497, 0.000278, 0.99484], atol=bound / 20)
