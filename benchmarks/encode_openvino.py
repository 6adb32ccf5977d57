"""OpenVINO directly, as a peer of `encode.py`: the published network as an OpenVINO graph, as good as it gets there.

f32   weights and products in float32, attention as one fused operation
bf16  the same in bfloat16
int8  weights in int8 per row, activations in int8 by fixed ranges per tensor, the only way in which OpenVINO's CPU
      plugin uses the int8 matrix units; ranges would come from calibration data, and here from the random network

Sorted batches of 16 texts, padded to the longest, as sentence-transformers does it: faster than one text at a time
for short texts, and no padding to speak of. Dense output only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 16
#: Fixed range of activations: inputs of a product after LayerNorm, and after GELU.
NORMED, INNER = 6.0, 8.0


def load(folder: str, mode: str) -> Callable[[Sequence[str], tuple[str, ...]], Any]:
    import openvino as ov
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    numbers = "f32" if mode == "f32" else "bf16"  # where the processor has no bfloat16, it takes f32 by itself
    hints = {"INFERENCE_PRECISION_HINT": numbers, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(graph(Path(folder), int8=mode == "int8"), "CPU", hints)

    def run(texts: Sequence[str], outputs: tuple[str, ...]) -> np.ndarray:
        ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        dense: list[Any] = [None] * len(ids)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            padded = np.ones((len(rows), len(ids[rows[0]])), dtype=np.int64)
            for place, i in enumerate(rows):
                padded[place, : len(ids[i])] = ids[i]
            for i, vector in zip(rows, compiled(padded)[0], strict=True):
                dense[i] = vector
        return np.stack(dense)

    return run


def graph(folder: Path, *, int8: bool) -> Any:
    """Of ids (n, t) int64, padded with 1, that gives unit vectors (n, d)."""
    import json

    import openvino as ov
    from openvino import opset13 as op
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    d, heads = config["hidden_size"], config["num_attention_heads"]
    file = safe_open(folder / "model.safetensors", framework="np")

    def product(x: Any, name: str, reach: float) -> Any:
        weight, bias = file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias")
        if not int8:
            return op.add(op.matmul(x, op.constant(weight), False, True), op.constant(bias))
        scale = np.abs(weight).max(axis=1, keepdims=True) / 127
        rows = op.convert(op.constant(np.round(weight / scale).astype(np.int8)), "f32")
        low, high = np.float32(-reach), np.float32(reach * 127 / 128)
        x = op.fake_quantize(x, low, high, low, high, 256)
        return op.add(op.matmul(x, op.multiply(rows, op.constant(scale)), False, True), op.constant(bias))

    def norm(x: Any, name: str) -> Any:
        x = op.mvn(x, np.array([-1]), True, config["layer_norm_eps"], "INSIDE_SQRT")
        return op.add(op.multiply(x, file.get_tensor(f"{name}.weight")), file.get_tensor(f"{name}.bias"))

    def rows(name: str, ids: Any) -> Any:
        return op.gather(op.constant(file.get_tensor(f"embeddings.{name}.weight")), ids, np.int64(0))

    ids = op.parameter([-1, -1], np.int64, name="ids")
    real = op.not_equal(ids, np.int64(1))  # (n, t)
    ones = op.convert(real, "i64")
    positions = op.add(op.multiply(op.cumsum(ones, np.int64(1)), ones), np.int64(1))
    types = file.get_tensor("embeddings.token_type_embeddings.weight")[0]
    x = op.add(op.add(rows("word_embeddings", ids), rows("position_embeddings", positions)), types)
    x = norm(x, "embeddings.LayerNorm")
    mask = op.unsqueeze(real, np.array([1, 2]))  # (n, 1, 1, t)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"

        def split(part: str, x: Any = x, layer: str = layer) -> Any:
            y = product(x, f"{layer}.attention.self.{part}", NORMED)
            y = op.reshape(y, np.array([0, 0, heads, d // heads]), True)
            return op.transpose(y, np.array([0, 2, 1, 3]))  # (n, heads, t, d_head)

        a = op.scaled_dot_product_attention(split("query"), split("key"), split("value"), mask)
        a = op.reshape(op.transpose(a, np.array([0, 2, 1, 3])), np.array([0, 0, d]), True)
        x = norm(
            op.add(product(a, f"{layer}.attention.output.dense", NORMED), x), f"{layer}.attention.output.LayerNorm"
        )
        inner = op.gelu(product(x, f"{layer}.intermediate.dense", NORMED), "erf")
        x = norm(op.add(product(inner, f"{layer}.output.dense", INNER), x), f"{layer}.output.LayerNorm")
    first = op.gather(x, np.int64(0), np.int64(1))
    return ov.Model([op.result(op.normalize_l2(first, np.array([-1]), 1e-12, "add"))], [ids], "xlm-roberta")
