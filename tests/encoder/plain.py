"""BGE-M3 once more, as the papers write it: one text at a time, float64, no packing. The oracle of the tests.

Devlin et al. 2018 (post-LayerNorm encoder, erf GELU); Chen et al. 2024, section 3 (the three heads).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.special import erf

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Plain:
    """A checkpoint folder of tests/encoder/checkpoints.py as plain arrays."""

    config: dict[str, Any]
    state: dict[str, F64]
    sparse: dict[str, F64]
    multi: dict[str, F64]

    @classmethod
    def read(cls, folder: Path) -> Plain:
        config = json.loads((folder / "config.json").read_text())
        if (folder / "pytorch_model.bin").is_file():
            state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        else:
            state = {}
            for file in sorted(folder.glob("*.safetensors")):
                state |= load_file(file)
        return cls(
            config, _numpy(state), _head(folder / "sparse_linear.pt"), _head(folder / "colbert_linear.pt")
        )  # fmt: skip

    def hidden(self, ids: list[int], types: list[int] | None = None) -> F64:
        """(t, d) states of the last layer; `types` are the token types, all 0 when left out."""
        s, c = self.state, self.config
        first = 0 if c["model_type"] == "bert" else c["pad_token_id"] + 1
        x = s["embeddings.word_embeddings.weight"][ids]
        x = x + s["embeddings.position_embeddings.weight"][first : first + len(ids)]
        x = x + s["embeddings.token_type_embeddings.weight"][types or [0] * len(ids)]
        x = self._norm(x, "embeddings.LayerNorm")
        for i in range(c["num_hidden_layers"]):
            layer = f"encoder.layer.{i}"
            attended = self._linear(self._attention(x, f"{layer}.attention.self"), f"{layer}.attention.output.dense")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            h = self._linear(x, f"{layer}.intermediate.dense")
            h = self._linear(0.5 * h * (1 + erf(h / np.sqrt(2))), f"{layer}.output.dense")
            x = self._norm(x + h, f"{layer}.output.LayerNorm")
        return x

    def dense(self, ids: list[int]) -> F64:
        return unit(self.hidden(ids)[0])

    def mean(self, ids: list[int]) -> F64:
        return unit(self.hidden(ids).mean(axis=0))

    def lexical(self, ids: list[int]) -> dict[int, float]:
        weights: dict[int, float] = {}
        for id, state in zip(ids, self.hidden(ids), strict=True):
            weight = float((self.sparse["weight"] @ state + self.sparse["bias"])[0])
            if id > 3 and weight > 0:
                weights[id] = max(weight, weights.get(id, 0.0))
        return weights

    def tokens(self, ids: list[int]) -> F64:
        return unit(self.hidden(ids)[1:] @ self.multi["weight"].T + self.multi["bias"])

    def _attention(self, x: F64, name: str) -> F64:
        size = x.shape[1] // self.config["num_attention_heads"]
        q, k, v = (self._linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        heads = []
        for h in range(self.config["num_attention_heads"]):
            cut = slice(h * size, (h + 1) * size)
            scores = q[:, cut] @ k[:, cut].T / np.sqrt(size)
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(powers / powers.sum(axis=1, keepdims=True) @ v[:, cut])
        return np.concatenate(heads, axis=1)

    def _linear(self, x: F64, name: str) -> F64:
        out: F64 = x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]
        return out

    def _norm(self, x: F64, name: str) -> F64:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        out: F64 = scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]
        return out


def unit(x: F64) -> F64:
    out: F64 = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return out


def _numpy(state: dict[str, torch.Tensor]) -> dict[str, F64]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def _head(path: Path) -> dict[str, F64]:
    return _numpy(torch.load(path, weights_only=True)) if path.is_file() else {}
