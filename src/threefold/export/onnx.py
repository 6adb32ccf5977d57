"""A model as one ONNX graph with its three outputs, for padded batches of any size and length.

The network of `encoder/network.py` and the heads of `encoder/heads.py`, once more, over (n, t) instead of packed
tokens; tests hold both equal. Letters: n texts, t tokens with padding, d hidden size, k dimensions of a token vector.

    input_ids       (n, t) int64, padded on the right
    attention_mask  (n, t) int64, 1 for tokens and 0 for padding
    dense           (n, d)
    sparse          (n, t) weight of every token; 0 for padding and special tokens. The weight of a term is the largest
                    of its tokens
    multi           (n, t - 1, k) vectors of all tokens but the first; 0 for padding
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from threefold.encoder.model import Model
from threefold.encoder.network import Layer, Network
from threefold.errors import InputError
from threefold.export import card
from threefold.export.graph import Graph
from threefold.export.hugging_face import network_settings, write_json, write_tokenizer
from threefold.export.opened import Opened

LAYOUT = "onnx"
FILE = "model.onnx"
#: Added to the attention score of padding: its share is exactly 0 in float32.
_FAR = -1e9


def write(opened: Opened, folder: Path, precision: str = "float32") -> tuple[str, ...]:
    """Write the files into `folder`; returns what a reader must know."""
    if precision != "float32":
        raise InputError(f"the ONNX graph is written in float32; got {precision!r}. onnxruntime has tools to shrink it")
    config = opened.config
    graph = Graph(folder / FILE)
    try:
        outputs = build(graph, opened.model, opened.tokenizer.special_ids)
        about = {"name": opened.name, "hash": opened.hash, "max_tokens": str(config.max_tokens)}
        graph.save({"input_ids": ("n", "t"), "attention_mask": ("n", "t")}, outputs, about)
    finally:
        graph.close()
    write_json(folder / "config.json", network_settings(config.network, opened.tokenizer))
    write_json(folder / "threefold_export.json", {"hash": opened.hash, "model": config.to_dict()})
    write_tokenizer(folder, opened.tokenizer, config.max_tokens)
    notes = (
        "Texts are padded on the right. `sparse` is the weight of every token, 0 for padding and special tokens; that "
        "of a term is the largest of its tokens. `multi` leaves out the first token and is 0 for padding.",
        *_lacking(opened),
    )
    card.write(folder, opened, LAYOUT, notes)
    return notes


def build(graph: Graph, model: Model, special: tuple[int, ...]) -> dict[str, tuple[str, tuple[str | int, ...]]]:
    """All nodes; the outputs by name, each with its shape."""
    heads, hidden = model.heads, model.config.network.hidden
    mask = graph.op("Cast", "attention_mask", to=1)  # (n, t) float32
    states = network(graph, model.network, mask)  # (n, t, d)
    outputs: dict[str, tuple[str, tuple[str | int, ...]]] = {}
    outputs["dense"] = dense(graph, states, mask, heads.config.pooling, heads.config.normalize), ("n", hidden)
    if heads.sparse is not None:
        outputs["sparse"] = sparse(graph, heads.sparse, states, mask, special), ("n", "t")
    if heads.multi is not None:
        outputs["multi"] = multi(graph, heads.multi, states, mask), ("n", "t_inner", heads.config.multi_dim)
    return outputs


# ---- the network ------------------------------------------------------------------------------------------


def network(graph: Graph, network: Network, mask: str) -> str:
    """(n, t, d) states of the last layer."""
    words = graph.op("Gather", graph.weight(network.words.weight), "input_ids")
    places = graph.op("Gather", graph.weight(network.positions.weight), _positions(graph, network))
    x = graph.op("Add", graph.op("Add", words, places), graph.weight(network.types.weight[0]))
    x = _norm(graph, network.norm, x)
    padding = graph.op("Mul", graph.op("Sub", graph.constant(1.0), mask), graph.constant(_FAR))  # (n, t)
    far = graph.op("Unsqueeze", padding, graph.constant([1, 2], np.int64))  # (n, 1, 1, t)
    for layer in network.layers:
        assert isinstance(layer, Layer)
        x = _layer(graph, layer, x, far)
    return x


def _positions(graph: Graph, network: Network) -> str:
    """(n, t) rows of the position table: the number of tokens before, from `first_position` on."""
    one = graph.constant(1, np.int64)
    so_far = graph.op("CumSum", "attention_mask", one)
    places = graph.op("Mul", graph.op("Sub", so_far, one), "attention_mask")
    return graph.op("Add", places, graph.constant(network.config.first_position, np.int64))


def _layer(graph: Graph, layer: Layer, x: str, far: str) -> str:
    """Self-attention and feed-forward, each followed by residual and LayerNorm. `far` (n, 1, 1, t) hides padding."""
    width = layer.qkv.in_features // layer.heads
    parts = graph.split("Split", _linear(graph, layer.qkv, x), outputs=3, axis=-1)  # each (n, t, d)
    apart = graph.constant([0, 0, layer.heads, width], np.int64)
    q, k, v = (graph.op("Reshape", part, apart) for part in parts)  # (n, t, heads, d_head)
    q, v = (graph.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
    k = graph.op("Transpose", k, perm=[0, 2, 3, 1])
    scores = graph.op("MatMul", graph.op("Mul", q, graph.constant(width**-0.5)), k)  # (n, heads, t, t)
    shares = graph.op("Softmax", graph.op("Add", scores, far), axis=-1)
    seen = graph.op("Transpose", graph.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    seen = graph.op("Reshape", seen, graph.constant([0, 0, layer.qkv.in_features], np.int64))  # (n, t, d)
    x = _norm(graph, layer.attended_norm, graph.op("Add", x, _linear(graph, layer.attended, seen)))
    h = _linear(graph, layer.down, _gelu(graph, _linear(graph, layer.up, x)))
    return _norm(graph, layer.down_norm, graph.op("Add", x, h))


def _linear(graph: Graph, linear: nn.Linear, x: str) -> str:
    product = graph.op("MatMul", x, graph.weight(linear.weight.T))
    return graph.op("Add", product, graph.weight(linear.bias))


def _norm(graph: Graph, norm: nn.LayerNorm, x: str) -> str:
    parts = graph.weight(norm.weight), graph.weight(norm.bias)
    return graph.op("LayerNormalization", x, *parts, axis=-1, epsilon=norm.eps)


def _gelu(graph: Graph, x: str) -> str:
    """The exact GELU: x / 2 * (1 + erf(x / sqrt 2)); onnxruntime joins these nodes into one."""
    inner = graph.op("Erf", graph.op("Div", x, graph.constant(2.0**0.5)))
    outer = graph.op("Mul", x, graph.op("Add", inner, graph.constant(1.0)))
    return graph.op("Mul", outer, graph.constant(0.5))


# ---- the heads --------------------------------------------------------------------------------------------


def dense(graph: Graph, states: str, mask: str, pooling: str, normalize: bool) -> str:
    """(n, d), as `heads.pool` and `Heads.dense_vectors`."""
    axis = graph.constant([1], np.int64)
    counts = graph.op("ReduceSum", mask, axis, keepdims=1)  # (n, 1)
    if pooling == "cls":
        pooled = graph.op("Gather", states, graph.constant(0, np.int64), axis=1)
    elif pooling == "mean":
        pooled = graph.op("Div", graph.op("ReduceSum", _hide(graph, states, mask), axis, keepdims=0), counts)
    else:
        last = graph.op("Cast", graph.op("Sub", counts, graph.constant(1.0)), to=7)  # (n, 1) int64
        pooled = graph.op("GatherND", states, last, batch_dims=1)
    return _unit(graph, pooled) if normalize else pooled


def sparse(graph: Graph, head: nn.Linear, states: str, mask: str, special: tuple[int, ...]) -> str:
    """(n, t), as `Heads.sparse_weights`, without special tokens."""
    axis = graph.constant([2], np.int64)
    weights = graph.op("Squeeze", graph.op("Relu", _linear(graph, head, states)), axis)
    ids = graph.op("Unsqueeze", "input_ids", axis)  # (n, t, 1)
    hits = graph.op("Cast", graph.op("Equal", ids, graph.constant(special, np.int64)), to=1)  # (n, t, specials)
    said = graph.op("Sub", mask, graph.op("ReduceMax", hits, axes=[2], keepdims=0))  # -1: a special id in the padding
    return graph.op("Mul", weights, graph.op("Relu", said))


def multi(graph: Graph, head: nn.Linear, states: str, mask: str) -> str:
    """(n, t - 1, k), as `Heads.multi_vectors`, without the first token."""
    first, end, axis = (graph.constant([value], np.int64) for value in (1, np.iinfo(np.int64).max, 1))
    inner = graph.op("Slice", states, first, end, axis)
    return _hide(graph, _unit(graph, _linear(graph, head, inner)), graph.op("Slice", mask, first, end, axis))


def _hide(graph: Graph, vectors: str, mask: str) -> str:
    """0 in the place of padding."""
    return graph.op("Mul", vectors, graph.op("Unsqueeze", mask, graph.constant([2], np.int64)))


def _unit(graph: Graph, vectors: str) -> str:
    """Unit length along the last axis, as `torch.nn.functional.normalize`."""
    length = graph.op("ReduceL2", vectors, axes=[-1], keepdims=1)
    return graph.op("Div", vectors, graph.op("Max", length, graph.constant(1e-12)))


def _lacking(opened: Opened) -> tuple[str, ...]:
    heads = opened.config.heads
    lacking = [name for name, there in (("sparse", heads.sparse), ("multi", heads.multi_dim)) if not there]
    return (f"The model has no {' and no '.join(lacking)} head; the graph has no such output.",) if lacking else ()
