"""A converted checkpoint is smaller, keeps its fingerprint, and is read without another conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.encoder.test_encoder import TEXTS, same

from threefold.encoder.bench import fidelity
from threefold.encoder.checkpoint import load
from threefold.encoder.convert import convert
from threefold.encoder.encoder import Encoder
from threefold.encoder.pool import EncoderPool
from threefold.encoder.products import has_int8
from threefold.errors import InputError, NumericalError

pytestmark = pytest.mark.skipif(not has_int8(), reason="this PyTorch has no oneDNN")


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_it_keeps_fingerprint_tokens_and_vectors(m3_folder: Path, m3: Encoder, tmp_path: Path, form: str) -> None:
    convert(m3_folder, tmp_path / "model", form)  # type: ignore[arg-type]
    encoder = Encoder(tmp_path / "model", device="cpu", precision=form)  # type: ignore[arg-type]
    assert (encoder.card.hash, encoder.card.tokenizer_hash) == (m3.card.hash, m3.card.tokenizer_hash)
    exact, got = m3.encode(TEXTS), encoder.encode(TEXTS)
    assert got.tokens.tolist() == exact.tokens.tolist()
    mean, _ = fidelity(exact, got)
    assert min(mean.values()) >= {"float32": 0.999999, "bfloat16": 0.9995, "int8": 0.995}[form]


def test_what_is_stored_in_which_numbers(m3_folder: Path, tmp_path: Path) -> None:
    size = convert(m3_folder, tmp_path / "model", "int8")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert size == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert stored["network.layers.0.qkv.weight"].dtype == torch.int8
    assert stored["network.layers.0.qkv.weight.scale"].dtype == torch.float32
    assert stored["network.words.weight"].dtype == stored["heads.multi.weight"].dtype == torch.bfloat16
    assert stored["network.norm.weight"].dtype == stored["network.layers.0.up.bias"].dtype == torch.float32


def test_int8_weights_are_not_quantised_twice(m3_folder: Path, tmp_path: Path) -> None:
    """Loaded from int8 and quantised while loading: the same integers, so the same vectors up to the tables."""
    convert(m3_folder, tmp_path / "model", "int8")
    stored = load(tmp_path / "model").stored("network.layers.1.down.weight")
    rows, scale = load(m3_folder).stored("network.layers.1.down.weight").int8()
    assert torch.equal(stored.tensor, rows)
    assert stored.scale is not None
    assert torch.equal(stored.scale, scale)


def test_a_converted_model_converts_again(m3_folder: Path, tmp_path: Path) -> None:
    convert(m3_folder, tmp_path / "half", "bfloat16")
    convert(tmp_path / "half", tmp_path / "int8", "int8")
    assert load(tmp_path / "int8").hash == load(m3_folder).hash


def test_it_declares_the_prompts_that_it_is_given(m3_folder: Path, tmp_path: Path) -> None:
    prompts: dict[str, Any] = {"query_prompt": "fox: ", "document_prompt": "dog: "}
    convert(m3_folder, tmp_path / "model", "float32", **prompts)
    told, converted = Encoder(m3_folder, device="cpu", **prompts), Encoder(tmp_path / "model", device="cpu")
    plain = Encoder(m3_folder, device="cpu")
    assert converted.card.hash == told.card.hash != plain.card.hash
    for encoder in (told, converted):
        found = [encoder.encode_queries(["lazy"]), encoder.encode_documents(["lazy"])]
        for got, prompt in zip(found, prompts.values(), strict=True):
            same(got, plain.encode([f"{prompt}lazy"]), 1e-5)
    with EncoderPool(m3_folder, processes=1, **prompts) as pool:
        assert pool.card.hash == told.card.hash
        same(pool.encode_queries(["lazy"]), told.encode_queries(["lazy"]), 1e-5)
    again = Encoder(tmp_path / "model", device="cpu", query_prompt="")
    assert again.card.hash not in (told.card.hash, plain.card.hash)


def test_int8_in_float32_is_the_dequantised_model(m3_folder: Path, tmp_path: Path) -> None:
    convert(m3_folder, tmp_path / "int8", "int8")
    exact = Encoder(tmp_path / "int8", device="cpu", precision="float32").encode(TEXTS)
    int8 = Encoder(tmp_path / "int8", device="cpu", precision="int8").encode(TEXTS)
    assert exact.dense is not None
    assert int8.dense is not None
    assert float(np.mean((exact.dense * int8.dense).sum(axis=1))) >= 0.995


def test_a_model_is_not_written_over_itself(m3_folder: Path) -> None:
    with pytest.raises(InputError, match="is the model itself"):
        convert(m3_folder, m3_folder)


def test_numbers_that_do_not_exist_are_refused(m3_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown form 'int4'; use one of float32, bfloat16, int8"):
        convert(str(m3_folder), str(tmp_path / "out"), "int4")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        convert(m3_folder, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_that_cannot_be_saved_leaves_nothing(m3_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    convert(m3_folder, broken, "float32")
    weights = load_file(broken / "model.safetensors")
    weights["network.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(NumericalError, match="is not saved"):
        convert(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
