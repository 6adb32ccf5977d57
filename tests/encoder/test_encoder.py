from __future__ import annotations

import gc
import json
import logging
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import bge_m3, sentence_transformer
from tests.encoder.plain import Plain
from tests.fakes import CORPUS

from threefold.encoder import front
from threefold.encoder.checkpoint import Model, load, save
from threefold.encoder.encoder import Encoder
from threefold.encoder.transfer import OnTheWay
from threefold.errors import CheckpointError, InputError, MissingHeadError, NumericalError
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import REPRESENTATIONS, Encoded

TEXTS = [
    "",
    " ",
    "fox",
    "fox fox fox fox",
    "What is BGE M3?",
    "今天天气很好。我们去公园散步吧！",
    "मौसम अच्छा है।",
    "<s> </s> <mask>",
    "never seen: ☃ 🦊 ᚠᚢᚦ",
    *CORPUS,
    " ".join(CORPUS),
]

#: Float32: a text alone and in a batch may differ by rounding, for the products are blocked by the batch's size.
ALONE = 2e-5


def same(a: Encoded, b: Encoded, atol: float) -> None:
    """Both say the same about every text."""
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.truncated.tolist() == b.truncated.tolist()
    assert (a.dense is None, a.sparse is None, a.multi is None) == (b.dense is None, b.sparse is None, b.multi is None)
    if a.dense is not None and b.dense is not None:
        np.testing.assert_allclose(a.dense, b.dense, atol=atol)
    if a.multi is not None and b.multi is not None:
        assert a.multi.offsets.tolist() == b.multi.offsets.tolist()
        np.testing.assert_allclose(a.multi.rows, b.multi.rows, atol=atol)
    if a.sparse is not None and b.sparse is not None:
        for i in range(len(a)):
            same_weights(a.sparse.row(i), b.sparse.row(i), atol)


def same_weights(a: dict[int, float], b: dict[int, float], atol: float) -> None:
    """Equal within `atol`; a weight at the edge of ReLU may be absent on one side."""
    for id in a.keys() | b.keys():
        assert a.get(id, 0.0) == pytest.approx(b.get(id, 0.0), abs=atol)


# ---- the definition --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["bin", "safetensors", "shards"])
def test_three_representations_equal_the_plain_computation(weights: str, tmp_path: Path) -> None:
    folder = bge_m3(tmp_path / "model", weights=weights, seed=1)
    plain = Plain.read(folder)
    three = Encoder(folder, device="cpu", precision="float32").encode(TEXTS)
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    tokens = Tokenizer.load(folder).encode(TEXTS, max_tokens=8192)
    for i in range(len(TEXTS)):
        ids = tokens[i].tolist()
        np.testing.assert_allclose(three.dense[i], plain.dense(ids), atol=1e-5)
        np.testing.assert_allclose(three.multi[i], plain.tokens(ids), atol=1e-5)
        same_weights(three.sparse.row(i), plain.lexical(ids), 1e-5)
        assert len(three.multi[i]) == len(ids) - 1
    assert max(len(three.sparse.row(i)) for i in range(len(TEXTS))) > 20


def test_a_text_of_8192_tokens(m3: Encoder, m3_folder: Path) -> None:
    long = " ".join(CORPUS) + " fox" * 9_000
    three = m3.encode([long, "fox"])
    assert three.tokens.tolist() == [8192, 4]
    assert three.truncated.tolist() == [True, False]
    assert three.dense is not None
    assert three.multi is not None
    plain = Plain.read(m3_folder)
    short = m3.encode([long], max_tokens=700, outputs=["dense", "multi"])
    ids = m3.tokenizer.encode([long], max_tokens=700)[0].tolist()
    assert short.dense is not None
    assert short.multi is not None
    np.testing.assert_allclose(short.dense[0], plain.dense(ids), atol=1e-5)
    np.testing.assert_allclose(short.multi[0], plain.tokens(ids), atol=1e-5)
    assert np.isfinite(three.multi.rows).all()


def test_mean_pooling_and_declared_settings_of_sentence_transformers(st_folder: Path) -> None:
    encoder, plain = Encoder(st_folder, device="cpu", precision="float32"), Plain.read(st_folder)
    assert (encoder.card.max_tokens, encoder.card.vocab, encoder.card.multi_dim) == (20, 0, 0)
    three = encoder.encode(TEXTS)
    assert (three.sparse, three.multi) == (None, None)
    assert three.dense is not None
    tokens = encoder.tokenizer.encode(TEXTS, max_tokens=20)
    assert three.truncated.tolist() == tokens.truncated.tolist()
    assert three.truncated.any()
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(three.dense[i], plain.mean(tokens[i].tolist()), atol=1e-5)


def test_rows_have_unit_length_unless_the_inner_product_is_declared(tmp_path: Path) -> None:
    """Models without a Normalize module are compared by the cosine, as sentence-transformers does."""
    folder = sentence_transformer(tmp_path / "model", pooling="cls_token", normalize=False)
    state = Plain.read(folder).hidden(Tokenizer.load(folder).encode(["fox"], max_tokens=20)[0].tolist())[0]
    for similarity, expected in (("cosine", state / np.linalg.norm(state)), ("dot", state)):
        prompts = {"prompts": {}, "similarity_fn_name": similarity}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        dense = Encoder(folder, device="cpu", precision="float32").encode(["fox"]).dense
        assert dense is not None
        np.testing.assert_allclose(dense[0], expected, atol=1e-5)


def test_16_bits_stay_close(m3: Encoder, m3_folder: Path) -> None:
    exact, half = m3.encode(TEXTS), Encoder(m3_folder, device="cpu", precision="bfloat16").encode(TEXTS)
    assert half.dense is not None
    assert exact.dense is not None
    assert half.dense.dtype == np.float32
    assert (half.dense * exact.dense).sum(axis=1).min() > 0.995
    np.testing.assert_allclose(np.linalg.norm(half.dense, axis=1), 1.0, atol=1e-5)


# ---- batches and order -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8),
    budget=st.sampled_from([1, 7, 40, 300, 100_000]),
    data=st.data(),
)
def test_a_text_does_not_depend_on_its_neighbours_their_order_or_the_budget(
    m3: Encoder, texts: list[str], budget: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    other = Encoder.__new__(Encoder)
    other.__dict__.update(m3.__dict__ | {"budget": budget})
    together = other.encode([texts[i] for i in order])
    alone = Encoded.concat([m3.encode([text]) for text in texts])
    same(together, alone.take(order), ALONE)


def test_progress_counts_every_text_and_token(m3: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    three = m3.encode(TEXTS * 40, progress=lambda texts, tokens: seen.append((texts, tokens)))
    assert len(seen) > 1
    assert [sum(column) for column in zip(*seen, strict=True)] == [len(TEXTS) * 40, int(three.tokens.sum())]


def test_four_threads_get_the_same(m3: Encoder) -> None:
    jobs = [TEXTS[i:] + TEXTS[:i] for i in range(8)]
    expected = [m3.encode(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(m3.encode, jobs), expected, strict=True):
            same(got, wanted, 1e-6)


def test_streams_are_read_lazily_and_in_order(m3: Encoder) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield f"fox {len(read)}"

    stream = m3.iter_encode(endless(), block=3, outputs=["dense"])
    assert read == []
    first, second = next(stream), next(stream)
    assert (len(first), len(second), len(read)) == (3, 3, 6)
    same(second, m3.encode(["fox 4", "fox 5", "fox 6"], outputs=["dense"]), ALONE)


def test_parts_of_a_stream_end_early_where_texts_are_long(m3: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "BLOCK_CHARACTERS", 10)
    parts = m3.iter_encode(["fox", "the lazy dog", "fox", "", "box"], block=3)
    assert [len(part) for part in parts] == [2, 3]
    assert list(m3.iter_encode([])) == []


# ---- options ---------------------------------------------------------------------------------------------


def test_only_what_was_asked_for(m3: Encoder) -> None:
    whole = m3.encode(TEXTS)
    for name in REPRESENTATIONS:
        kept: dict[str, Any] = {each: getattr(whole, each) if each == name else None for each in REPRESENTATIONS}
        same(m3.encode(TEXTS, outputs=[name]), replace(whole, **kept), 1e-6)


def test_no_texts(m3: Encoder, st_folder: Path) -> None:
    three = m3.encode([])
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    assert (len(three), three.dense.shape, len(three.sparse), three.multi.rows.shape) == (0, (0, 32), 0, (0, 32))
    same(Encoded.concat([three, m3.encode(["fox"])]), m3.encode(["fox"]), 0.0)
    only = Encoder(st_folder, device="cpu").encode([])
    assert (only.sparse, only.multi) == (None, None)


@pytest.mark.parametrize(("truncate", "kept"), [("end", slice(0, 4)), ("start", slice(-4, None))])
def test_truncation_is_reported(m3: Encoder, truncate: Any, kept: slice) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    inner = m3.tokenizer.encode([text], max_tokens=99)[0][1:-1]
    three = m3.encode([text, "fox"], max_tokens=6, truncate=truncate)
    assert three.tokens.tolist() == [6, 4]
    assert three.truncated.tolist() == [True, False]
    assert three.sparse is not None
    assert set(three.sparse[0][0].tolist()) <= set(inner[kept].tolist())


def test_truncation_can_be_refused(m3: Encoder) -> None:
    with pytest.raises(InputError, match=r"text 1 has .* tokens, the limit is 6"):
        m3.encode(["fox", "the quick brown fox jumps"], max_tokens=6, truncate="none")


def test_prompts_stand_before_every_text(st_folder: Path) -> None:
    encoder = Encoder(st_folder, device="cpu", precision="float32")
    same(encoder.encode_queries(["fox", "dog"]), encoder.encode(["query: fox", "query: dog"]), ALONE)
    same(encoder.encode_documents(["fox"]), encoder.encode(["passage: fox"]), ALONE)
    same(encoder.encode_queries(["fox"], prompt="? "), encoder.encode(["? fox"]), ALONE)


def test_shorter_dense_vectors_have_unit_length(m3_folder: Path, tmp_path: Path) -> None:
    encoder = matryoshka(m3_folder, tmp_path / "model")
    whole, cut = encoder.encode(["fox", "dog"]).dense, encoder.encode(["fox", "dog"], dim=8).dense
    assert whole is not None
    assert cut is not None
    np.testing.assert_allclose(cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    same(encoder.encode(["fox"], dim=32), encoder.encode(["fox"]), 0.0)
    assert encoder.encode([], dim=8).dense is not None
    with pytest.raises(InputError, match="cannot cut dense vectors to 9 dimensions; allowed are 16, 8"):
        encoder.encode(["fox"], dim=9)


def matryoshka(source: Path, folder: Path) -> Encoder:
    loaded = load(source).model
    config = replace(loaded.config, matryoshka=(16, 8))
    model = Model(config)
    model.load_state_dict(loaded.state_dict())
    save(model, folder)
    shutil.copy(source / "tokenizer.json", folder)
    return Encoder(folder, device="cpu", precision="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["dense", "colbert"]}, "outputs must be some of dense, sparse, multi"),
        ({"outputs": "dense"}, "outputs must be some of"),
        ({"outputs": []}, "outputs must be some of"),
        ({"dim": 16}, "cannot cut dense vectors to 16 dimensions; allowed are none"),
        ({"max_tokens": 8193}, "reads at most 8192 tokens; got max_tokens=8193"),
        ({"max_tokens": 2}, "max_tokens must be at least 3; got 2"),
        ({"max_tokens": 10.5}, r"max_tokens must be a whole number; got 10\.5"),
        ({"max_tokens": float("nan")}, "max_tokens must be a whole number; got nan"),
        ({"truncate": "middle"}, "truncate must be one of end, start, none; got 'middle'"),
    ],
)
def test_options_that_mean_nothing_are_refused(m3: Encoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        m3.encode(["fox"], **options)


def test_unknown_options_are_refused(m3: Encoder) -> None:
    with pytest.raises(TypeError, match="batch_size"):
        m3.encode(["fox"], batch_size=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="batch_size"):
        m3.encode_queries(["fox"], batch_size=3)
    with pytest.raises(TypeError, match="use_fp16"):
        Encoder(use_fp16=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_one_text_instead_of_a_list_is_refused(m3: Encoder, prompt: str) -> None:
    with pytest.raises(InputError, match="put it into a list"):
        m3.encode("fox", prompt=prompt)
    with pytest.raises(InputError, match="put it into a list"):
        m3.iter_encode("fox")


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_what_is_not_a_text_is_named(m3: Encoder, prompt: str) -> None:
    with pytest.raises(InputError, match="text 1 must be a string; got NoneType"):
        m3.encode(["fox", None], prompt=prompt)  # type: ignore[list-item]
    with pytest.raises(InputError, match="text 0 must be a string; got int"):
        list(m3.iter_encode([1]))  # type: ignore[list-item]


def test_messages_count_texts_of_the_stream_not_of_its_part(m3: Encoder) -> None:
    with pytest.raises(InputError, match="text 3 must be a string; got int"):
        list(m3.iter_encode(["a", "b", "c", 5], block=2))  # type: ignore[list-item]
    stream = m3.iter_encode(["a", "b", "c", "a text that is too long"], block=2, max_tokens=5, truncate="none")
    assert len(next(stream)) == 2
    with pytest.raises(InputError, match="text 3 has"):
        next(stream)


def test_arguments_that_can_be_read_only_once(m3: Encoder) -> None:
    texts, names = (text for text in ["fox", "dog"]), (name for name in ["dense"])
    same(m3.encode(texts, outputs=names), m3.encode(["fox", "dog"], outputs=["dense"]), 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[0, -7, 2], [0, 10**6, 2]])
def test_ids_that_the_model_does_not_have_are_refused(m3: Encoder, ids: list[int]) -> None:
    tokens = Tokens(np.array(ids, np.int32), np.array([0, 3]), np.array([3]))
    for encode in (m3.encode_ids, lambda tokens: m3.encode_tokens(tokens, [["dense"]])):
        with pytest.raises(InputError, match="ids must be from 0 to"):
            encode(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"precision": "float8"}, "unknown precision 'float8'"),
        ({"precision": "float16", "device": "cpu"}, "float16 on a CPU is emulated"),
        ({"budget": 0}, "budget must be at least 1; got 0"),
        ({"revision": "main"}, "is a folder and has no revisions"),
        ({"pooling": "max"}, "'max' is not one of"),
    ],
)
def test_construction_checks_its_options(m3_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoder(m3_folder, **options)


def test_an_encoder_that_nobody_has_gives_its_memory_back_at_once(m3_folder: Path) -> None:
    encoder = Encoder(m3_folder, device="cpu")
    encoder.encode(["fox"])
    weights = weakref.ref(encoder._model.network)
    gc.disable()  # on a GPU, a collection that may come much later would be too late for the next model
    try:
        del encoder
        assert weights() is None
    finally:
        gc.enable()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_gpu_that_is_not_there(m3_folder: Path) -> None:
    with pytest.raises(InputError, match="sees no CUDA GPU"):
        Encoder(m3_folder, device="cuda")


def test_a_block_below_one_is_refused_at_once(m3: Encoder) -> None:
    with pytest.raises(InputError, match="block must be at least 1"):
        m3.iter_encode(["fox"], block=0)


# ---- what it is ------------------------------------------------------------------------------------------


def test_the_card(m3: Encoder, m3_folder: Path) -> None:
    card = m3.card
    assert (card.name, card.dense_dim, card.multi_dim, card.max_tokens) == (str(m3_folder), 32, 32, 8192)
    assert card.vocab == m3.tokenizer.vocab
    assert card.representations == ("dense", "sparse", "multi")
    assert card.precision == "float32"
    assert "float32" in repr(m3)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = sentence_transformer(tmp_path / "model")
    path = folder / "model.safetensors"
    state = load_file(path)
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:50].clone()
    save_file(state, path)
    config = (folder / "config.json").read_text()
    size = Tokenizer.load(folder).vocab
    (folder / "config.json").write_text(config.replace(f'"vocab_size": {size}', '"vocab_size": 50'))
    with pytest.raises(CheckpointError, match=f"{size} tokens, the word table of the network 50 rows"):
        Encoder(folder, device="cpu")


@pytest.mark.parametrize(("gone", "representation"), [("sparse_linear.pt", "sparse"), ("colbert_linear.pt", "multi")])
def test_one_missing_head_leaves_the_other(
    m3: Encoder, m3_folder: Path, tmp_path: Path, gone: str, representation: Any
) -> None:
    shutil.copytree(m3_folder, tmp_path / "model")
    (tmp_path / "model" / gone).unlink()
    encoder = Encoder(tmp_path / "model", device="cpu", precision="float32")
    kept = [name for name in REPRESENTATIONS if name != representation]
    assert list(encoder.card.representations) == kept
    same(encoder.encode(TEXTS), m3.encode(TEXTS, outputs=kept), 1e-6)
    with pytest.raises(MissingHeadError, match=f"cannot make {representation} vectors: it has no {gone}"):
        encoder.encode(["fox"], outputs=["dense", representation])


# ---- damaged weights -------------------------------------------------------------------------------------


def test_nan_never_leaves(m3_folder: Path, tmp_path: Path) -> None:
    folder = bge_m3(tmp_path / "model", weights="safetensors")
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.0.output.dense.weight"][3, 5] = torch.nan
    save_file(state, folder / "model.safetensors")
    for precision in ("float32", "bfloat16"):
        with pytest.raises(NumericalError, match="NaN or infinity in float32: its weights are damaged"):
            Encoder(folder, device="cpu", precision=precision).encode(["fox"])


def test_an_overflow_in_16_bits_is_computed_again_in_float32(
    m3: Encoder, m3_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(m3_folder, device="cpu", precision="bfloat16")
    run, calls = encoder._run, []

    def overflowing(model: Model, *rest: Any) -> OnTheWay:
        calls.append(model.heads.state_dict()["sparse.weight"].dtype)
        found = run(model, *rest)
        if calls[-1] == torch.bfloat16:
            found.arrays()["dense"][0, 0] = np.inf  # a view of what travels
        return found

    monkeypatch.setattr(encoder, "_run", overflowing)
    with caplog.at_level(logging.WARNING):
        same(encoder.encode(TEXTS), m3.encode(TEXTS), ALONE)
    assert calls == [torch.bfloat16, torch.float32]
    assert "overflows in bfloat16" in caplog.text


def test_texts_without_tokens_are_refused(m3: Encoder) -> None:
    tokens = m3.tokenizer.encode(["a fox", ""], max_tokens=20)
    none = Tokens(
        tokens.ids[: tokens.offsets[1]], np.array([0, tokens.offsets[1], tokens.offsets[1]]), tokens.available
    )
    with pytest.raises(InputError, match="text 1 has no tokens"):
        m3.encode_ids(none)
    with pytest.raises(InputError, match="text 1 has no tokens"):
        m3.encode_tokens(none, [["dense"], ["dense"]])
