"""A checkpoint in the published layout as llama.cpp reads it, in F16 or Q8_0; written once, beside the checkpoint.

    python benchmarks/gguf_file.py FOLDER [--kind q8_0]

The metadata and tensors are those that llama.cpp's own `convert_hf_to_gguf.py` writes for XLM-RoBERTa. Needs
`pip install gguf`. Prints the cosine of llama.cpp's vector to ours where llama-cpp-python is installed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFWriter

KINDS = ("f16", "q8_0")


def gguf_file(folder: Path, kind: str) -> Path:
    """The file of a checkpoint in one kind of numbers."""
    path = folder / f"{kind}.gguf"
    if not path.is_file():
        part = path.with_suffix(".part")
        write(folder, part, kind)
        part.replace(path)
    return path


def write(folder: Path, path: Path, kind: str) -> None:
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    first = config["pad_token_id"] + 1  # row of the first position
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"] - first)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise SystemExit(f"llama.cpp has no place for {name}")
        rows = tensor[first:] if "position_embeddings" in name else tensor
        writer.add_tensor(theirs, *stored(np.ascontiguousarray(rows, np.float32), theirs, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def stored(tensor: np.ndarray[Any, Any], name: str, kind: str) -> tuple[Any, ...]:
    """The numbers as they lie in the file, and their kind where it is not the array's own."""
    import gguf

    matrix = tensor.ndim == 2 and not name.startswith(("position_embd", "token_types"))
    if not matrix:
        return (tensor,)
    if kind == "f16":
        return (tensor.astype(np.float16),)
    quantised = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(tensor, quantised), None, quantised


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """Pieces and scores of a unigram tokenizer; rows of the word table that no piece has are marked as unused."""
    import gguf

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    unused = [f"[unused{i}]" for i in range(size - len(pieces))]
    control = {"<s>", "</s>", "<pad>"}
    kinds = [
        gguf.TokenType.CONTROL if piece in control
        else gguf.TokenType.UNKNOWN if piece == "<unk>" else gguf.TokenType.NORMAL
        for piece, _ in pieces
    ]  # fmt: skip
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in pieces] + unused)
    writer.add_token_scores([score for _, score in pieces] + [-1000.0] * len(unused))
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_add_space_prefix(True)
    writer.add_token_type_count(1)
    writer.add_remove_extra_whitespaces(True)
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_sep_token_id(ids["</s>"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def cosine(folder: Path, path: Path, text: str) -> float:
    """Of llama.cpp's vector to ours in float32."""
    from llama_cpp import Llama

    from threefold import Encoder

    theirs = np.array(Llama(str(path), embedding=True, verbose=False, n_ctx=512).embed(text), np.float64)
    ours = Encoder(folder, precision="float32").encode([text], outputs=("dense",)).dense
    assert ours is not None
    return float(ours[0] @ theirs / np.linalg.norm(theirs))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--kind", choices=KINDS, default="q8_0")
    args = options.parse_args()
    path = gguf_file(args.folder, args.kind)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    try:
        print(f"cosine to float32: {cosine(args.folder, path, 'w1 w2 w3 w50 w7 w99 w1000'):.6f}")
    except ModuleNotFoundError as missing:
        print(f"not compared: {missing}")


if __name__ == "__main__":
    main()
