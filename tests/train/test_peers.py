"""Steps of FlagEmbedding's M3 trainer: same loss, same gradients, same weights after updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.encoder.checkpoints import bge_m3
from tests.train.small import tokens

from threefold.encoder.checkpoint import load
from threefold.text.tokenizer import Tokenizer
from threefold.train.batches import PairTable
from threefold.train.loop import Trainer, TrainSettings
from threefold.types import Ints

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # their imports warn
]

PAIRS, GROUP, PAD = 4, 3, 1


def table(vocab: int) -> PairTable:
    rng = np.random.default_rng(0)

    def texts(n: int) -> Any:
        return tokens([[0, *rng.integers(5, vocab, int(rng.integers(2, 12))).tolist(), 2] for _ in range(n)])

    flags, hard = np.zeros(PAIRS, np.int8), GROUP - 1
    return PairTable(
        texts(PAIRS), texts(PAIRS), flags.astype(np.int64), np.arange(PAIRS), flags, flags.astype(bool),
        negative=texts(PAIRS * hard), negatives=np.arange(PAIRS + 1) * hard,
    )  # fmt: skip


def released(folder: Path) -> Any:
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Model as Model
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner as Runner
    from transformers import AutoTokenizer

    model = Model(
        Runner.get_model(str(folder)), tokenizer=AutoTokenizer.from_pretrained(folder), temperature=0.02,
        sentence_pooling_method="cls", normalize_embeddings=True, unified_finetuning=True, use_self_distill=True,
        kd_loss_type="kl_div",
    ).train()  # fmt: skip
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def padded(texts: list[Ints]) -> dict[str, torch.Tensor]:
    ids = np.full((len(texts), max(map(len, texts))), PAD, np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy((ids != PAD).astype(np.int64))}


def test_a_step_is_that_of_the_released_trainer(tmp_path: Path) -> None:
    folder = bge_m3(tmp_path / "m3")
    theirs, ours = released(folder), load(folder).model
    pairs, special = table(ours.config.network.vocab), Tokenizer.load(folder).special_ids
    settings = TrainSettings(idf_steps=0, precision="float32")
    trainer = Trainer(ours, pairs, [np.arange(PAIRS)], settings, tmp_path, special=special)
    log = trainer.gradients(np.arange(PAIRS))
    passages: list[Ints] = []
    for i in range(PAIRS):
        passages += [pairs.positive[i], *(pairs.negative[int(j)] for j in pairs.negatives_of(np.array([i])))]
    loss = theirs(padded([pairs.query[i] for i in range(PAIRS)]), padded(passages)).loss
    loss.backward()
    assert log["total"] == pytest.approx(loss.item(), rel=1e-5)
    layer = theirs.model.encoder.layer[1]
    same = {
        "network.words.weight": theirs.model.embeddings.word_embeddings.weight.grad,
        "network.layers.1.down.weight": layer.output.dense.weight.grad,
        "network.layers.1.attended.weight": layer.attention.output.dense.weight.grad,
        "heads.sparse.weight": theirs.sparse_linear.weight.grad,
        "heads.multi.weight": theirs.colbert_linear.weight.grad,
    }
    found = dict(ours.named_parameters())
    for name, gradient in same.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(found[name].grad / scale, gradient / scale, rtol=1e-4, atol=2e-5)
