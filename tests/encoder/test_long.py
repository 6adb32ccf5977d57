"""Windows and MCLS against the definitions, computed text by text in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoder.checkpoints import sentence_transformer
from tests.encoder.plain import Plain, unit
from tests.encoder.test_encoder import ALONE, TEXTS, matryoshka, same, same_weights
from tests.fakes import CORPUS

from threefold.encoder.encoder import Encoder
from threefold.encoder.long import MclsEncoder, _marked, _room, encode_mcls, encode_windows
from threefold.encoder.pool import EncoderPool
from threefold.errors import InputError
from threefold.types import Encoded

LONG = " ".join(CORPUS)
MIXED = [LONG, "fox", "", CORPUS[0], LONG + " " + LONG[::-1]]


@pytest.fixture(scope="module")
def plain(m3_folder: Path) -> Plain:
    return Plain.read(m3_folder)


def inner_ids(encoder: Encoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer.encode([text], max_tokens=100_000)[0][1:-1].tolist()
    return ids


# ---- windows ---------------------------------------------------------------------------------------------


def naive_pieces(inner: list[int], window: int, overlap: int) -> list[tuple[list[int], list[int]]]:
    """(context, own tokens) of every window."""
    if len(inner) + 2 <= window:
        return [([], inner)]
    room = window - 2 - overlap
    count = (len(inner) + room - 1) // room
    borders = [k * len(inner) // count for k in range(count + 1)]
    return [
        (inner[max(0, borders[k] - overlap) : borders[k]], inner[borders[k] : borders[k + 1]]) for k in range(count)
    ]


@pytest.mark.parametrize(("window", "overlap"), [(40, 0), (40, 7), (17, 3), (8192, 0)])
def test_windows_equal_the_plain_computation(m3: Encoder, plain: Plain, window: int, overlap: int) -> None:
    three = encode_windows(m3, MIXED, window=window, overlap=overlap)
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    assert not three.truncated.any()
    for i, text in enumerate(MIXED):
        inner = inner_ids(m3, text)
        assert three.tokens[i] == len(inner) + 2
        total = np.zeros(32)
        terms: dict[int, float] = {}
        rows = []
        pieces = naive_pieces(inner, window, overlap)
        for context, own in pieces:
            ids = [0, *context, *own, 2]
            assert len(ids) <= window
            total += plain.dense(ids) * max(len(own), 1)
            for id, weight in plain.lexical(ids).items():
                terms[id] = max(weight, terms.get(id, 0.0))
            rows.append(plain.tokens(ids)[len(context) : len(context) + len(own)])
        rows.append(plain.tokens([0, *pieces[-1][0], *pieces[-1][1], 2])[-1:])
        np.testing.assert_allclose(three.dense[i], unit(total), atol=1e-5)
        same_weights(three.sparse.row(i), terms, 1e-5)
        assert len(three.multi[i]) == len(inner) + 1
        np.testing.assert_allclose(three.multi[i], np.concatenate(rows), atol=1e-5)


def test_what_fits_is_encoded_as_always(m3: Encoder) -> None:
    same(encode_windows(m3, TEXTS), m3.encode(TEXTS), ALONE)
    same(encode_windows(m3, []), m3.encode([]), 0.0)
    short = [text for text in TEXTS if len(inner_ids(m3, text)) < 20]
    mixed = encode_windows(m3, [*short, LONG], window=40)
    same(mixed.take(range(len(short))), m3.encode(short), ALONE)


def test_a_document_longer_than_the_model_reads(m3: Encoder) -> None:
    """9,000 tokens do not fit into 8,192; nothing is lost."""
    end = " unique ending"
    text = "fox " * 5_000 + end
    three = encode_windows(m3, [text], outputs=["sparse", "dense"])
    cut = m3.encode([text], outputs=["sparse", "dense"])
    assert (three.tokens[0] > 8192, cut.tokens[0], cut.truncated[0]) == (True, 8192, True)
    assert three.sparse is not None
    assert cut.sparse is not None
    found, lost = set(three.sparse.row(0)), set(inner_ids(m3, end)) - set(cut.sparse.row(0))
    assert found & lost  # terms of the end, which one pass never saw


@settings(deadline=None, max_examples=25)
@given(length=st.integers(0, 60), window=st.integers(6, 30), overlap=st.integers(0, 4))
def test_every_token_has_one_row_and_no_window_is_too_long(m3: Encoder, length: int, window: int, overlap: int) -> None:
    seen: list[tuple[int, int]] = []
    three = encode_windows(
        m3,
        ["fox " * length, "dog"],
        window=window,
        overlap=min(overlap, window - 3),
        progress=lambda texts, tokens: seen.append((texts, tokens)),
    )
    assert three.multi is not None
    expected = [len(inner_ids(m3, text)) + 1 for text in ("fox " * length, "dog")]
    assert np.diff(three.multi.offsets).tolist() == expected
    assert all(tokens <= window * windows for windows, tokens in seen)


def test_only_what_was_asked_for_and_shorter_dense_vectors(m3_folder: Path, tmp_path: Path) -> None:
    encoder = matryoshka(m3_folder, tmp_path / "model")
    three = encode_windows(encoder, [LONG, "fox"], window=40, outputs=["dense"], dim=8)
    assert (three.sparse, three.multi) == (None, None)
    assert three.dense is not None
    np.testing.assert_allclose(np.linalg.norm(three.dense, axis=1), 1.0, atol=1e-6)
    assert three.dense.shape == (2, 8)


def test_the_prompt_stands_before_every_window(st_folder: Path) -> None:
    encoder = Encoder(st_folder, device="cpu", precision="float32")
    plain, prompt = Plain.read(st_folder), "query: "
    three = encode_windows(encoder, [LONG, "fox"], prompt=prompt)  # the model reads 20 tokens
    ids, words = inner_ids(encoder, LONG), inner_ids(encoder, prompt)
    room = 20 - 2 - len(words)
    count = -(-len(ids) // room)
    total = np.zeros(32)
    for k in range(count):
        own = ids[k * len(ids) // count : (k + 1) * len(ids) // count]
        total += plain.mean([encoder.tokenizer.cls_id, *words, *own, encoder.tokenizer.sep_id]) * len(own)
    assert three.dense is not None
    np.testing.assert_allclose(three.dense[0], unit(total), atol=1e-5)
    same(three.take([1]), encoder.encode_queries(["fox"]), ALONE)


def test_prompts_keep_one_row_per_token(m3: Encoder) -> None:
    prompt = "the lazy dog "
    three = encode_windows(m3, [LONG], window=30, overlap=2, prompt=prompt, outputs=["multi"])
    assert three.multi is not None
    assert three.tokens.tolist() == [len(inner_ids(m3, prompt + LONG)) + 2]
    assert len(three.multi[0]) == three.tokens[0] - 1


def test_without_normalization_the_mean_keeps_its_length(tmp_path: Path) -> None:
    folder = sentence_transformer(tmp_path / "model", pooling="cls_token", normalize=False)
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
    encoder = Encoder(folder, device="cpu", precision="float32")
    dense = encode_windows(encoder, [LONG]).dense
    assert dense is not None
    assert abs(np.linalg.norm(dense[0]) - 1) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 8193}, "windows of 8193 tokens, but the model reads at most 8192"),
        ({"window": 2}, "leave no room for a text: 2 are special or prompt, 0 overlap"),
        ({"window": 10, "overlap": 8}, "leave no room for a text"),
        ({"overlap": -1}, "leave no room|overlap"),
        ({"window": 8, "prompt": "the quick brown fox "}, "leave no room for a text"),
        ({"dim": 9}, "cannot cut dense vectors"),
        ({"outputs": ["colbert"]}, "outputs must be some of"),
    ],
)
def test_windows_check_their_options(m3: Encoder, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_windows(m3, ["fox"], **options)
    with pytest.raises(InputError, match="put it into a list"):
        encode_windows(m3, "fox")


# ---- MCLS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 5, 16, 256])
def test_mcls_is_the_mean_of_the_states_of_every_cls(m3: Encoder, plain: Plain, every: int) -> None:
    three = encode_mcls(m3, MIXED, every=every)
    assert (three.sparse, three.multi) == (None, None)
    assert three.dense is not None
    for i, text in enumerate(MIXED):
        inner = inner_ids(m3, text)
        ids = [0]
        for place, id in enumerate(inner):
            ids += [0, id] if place and place % every == 0 else [id]
        ids.append(2)
        states = plain.hidden(ids)[[place for place, id in enumerate(ids) if id == 0]]
        np.testing.assert_allclose(three.dense[i], unit(states.mean(axis=0)), atol=1e-5)
        assert three.tokens[i] == len(ids)
    assert not three.truncated.any()


def test_short_texts_are_encoded_as_always(m3: Encoder) -> None:
    same(encode_mcls(m3, TEXTS[:-1]), m3.encode(TEXTS[:-1], outputs=["dense"]), ALONE)  # the last one is long
    same(encode_mcls(m3, []), m3.encode([], outputs=["dense"]), 0.0)


@given(limit=st.integers(3, 300), every=st.integers(1, 50))
def test_room_is_the_most_that_fits(limit: int, every: int) -> None:
    def length(t: int) -> int:
        return t + max(-(-t // every), 1) + 1

    assert length(_room(limit, every)) <= limit < length(_room(limit, every) + 1)


def test_marks_by_hand(m3: Encoder) -> None:
    tokens = m3.tokenizer.encode(["fox fox fox", ""], max_tokens=99)
    a = tokens[0].tolist()[1:-1]
    marked = _marked(tokens, 0, 2)
    pairs = [a[k : k + 2] for k in range(0, len(a), 2)]
    assert marked[0].tolist() == [id for pair in pairs for id in [0, *pair]] + [2]
    assert marked[1].tolist() == [0, 2]


def test_a_text_longer_than_the_model_reads_is_cut_and_reported(m3: Encoder) -> None:
    three = encode_mcls(m3, ["fox " * 9_000, "fox"])
    assert three.tokens.tolist() == [8192, 4]
    assert three.truncated.tolist() == [True, False]
    with pytest.raises(InputError, match="the limit is"):
        encode_mcls(m3, ["fox " * 50], max_tokens=20, every=4, truncate="none")


def test_mcls_with_prompt_shorter_vectors_and_progress(m3_folder: Path, tmp_path: Path) -> None:
    encoder = matryoshka(m3_folder, tmp_path / "model")
    whole, cut = encode_mcls(encoder, [LONG], every=9).dense, encode_mcls(encoder, [LONG], every=9, dim=8).dense
    assert whole is not None
    assert cut is not None
    np.testing.assert_allclose(cut[0], unit(whole[0, :8].astype(np.float64)), atol=1e-5)
    seen: list[tuple[int, int]] = []
    prompted = encode_mcls(
        encoder, MIXED, every=9, prompt="dog ", progress=lambda texts, tokens: seen.append((texts, tokens))
    )
    same(prompted, encode_mcls(encoder, ["dog " + text for text in MIXED], every=9), ALONE)
    assert [sum(column) for column in zip(*seen, strict=True)] == [len(MIXED), int(prompted.tokens.sum())]


def test_many_batches_are_put_back_in_order(m3_folder: Path, m3: Encoder) -> None:
    small = Encoder(m3_folder, device="cpu", precision="float32", budget=50)
    same(encode_mcls(small, MIXED, every=7), encode_mcls(m3, MIXED, every=7), ALONE)
    same(encode_windows(small, MIXED, window=30), encode_windows(m3, MIXED, window=30), ALONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"max_tokens": 8193}, "max_tokens must be from 3 to 8192; got 8193"),
        ({"max_tokens": 2}, "max_tokens must be from 3"),
        ({"dim": 9}, "cannot cut dense vectors"),
        ({"truncate": "middle"}, "truncate must be one of"),
    ],
)
def test_mcls_checks_its_options(m3: Encoder, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_mcls(m3, ["fox"], **options)


def test_mcls_needs_a_model_that_reads_the_first_state(st_folder: Path) -> None:
    with pytest.raises(InputError, match="averages the states of <s>, but this model pools by 'mean'"):
        encode_mcls(Encoder(st_folder, device="cpu"), ["fox"])


def test_both_work_on_many_devices(m3_folder: Path, m3: Encoder) -> None:
    with EncoderPool(m3_folder, processes=1, precision="float32", threads=1) as pool:
        same(encode_windows(pool, MIXED, window=30, overlap=3), encode_windows(m3, MIXED, window=30, overlap=3), ALONE)
        got: Encoded = encode_mcls(pool, MIXED, every=9)
        same(got, encode_mcls(m3, MIXED, every=9), ALONE)


def test_an_encoder_that_reads_documents_by_mcls(m3: Encoder) -> None:
    encoder = MclsEncoder(m3, every=5)
    found, usual = encoder.encode_documents(TEXTS), m3.encode_documents(TEXTS)
    same(replace(found, sparse=None, multi=None), encode_mcls(m3, TEXTS, every=5), 0.0)
    assert found.sparse is not None
    assert usual.sparse is not None
    assert (found.sparse.to_scipy() - usual.sparse.to_scipy()).nnz == 0
    same(encoder.encode_queries(TEXTS), m3.encode_queries(TEXTS), 0.0)
    assert encoder.encode_documents(TEXTS, outputs=["sparse"]).dense is None
    assert encoder.card.hash != m3.card.hash


def test_texts_that_can_be_read_only_once(m3: Encoder) -> None:
    texts = ["fox", "the quick brown fox jumps"]
    assert len(encode_windows(m3, iter(texts), window=5, prompt="a ")) == 2  # type: ignore[arg-type]
    assert len(MclsEncoder(m3, every=5).encode_documents(iter(texts))) == 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match="put it into a list"):
        encode_windows(m3, "fox")


def test_mcls_needs_a_model_that_pools_by_cls(tmp_path: Path) -> None:
    mean = Encoder(sentence_transformer(tmp_path / "bert", pooling="mean_tokens"), device="cpu")
    with pytest.raises(InputError, match="pools by 'mean'"):
        MclsEncoder(mean)
