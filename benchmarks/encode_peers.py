"""The contenders of `encode.py`: how each is built, which outputs it has, and why one cannot run here.

A contender is a function of a folder and its options that returns `run(texts, outputs)`. Packages are imported inside:
what is not installed is left out, and the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

DENSE, ALL = ("dense",), ("dense", "sparse", "multi")

Run = Callable[[Sequence[str], tuple[str, ...]], Any]


class Contender(NamedTuple):
    """One way to make vectors.

    build    (folder, *options) -> run
    kinds    what it is asked for, workload by workload
    numbers  whose matrix rate is its limit
    needs    package that must be installed; empty: always there
    """

    build: Callable[..., Run]
    options: tuple[Any, ...]
    kinds: tuple[tuple[str, ...], ...]
    numbers: str
    needs: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        return "" if not self.needs or find_spec(self.needs) else f"{self.needs} is not installed"


def threefold(folder: str, precision: str, device: str = "cpu", graphs: bool = False) -> Run:
    from threefold import Encoder

    encoder = Encoder(folder, device=device, precision=precision, graphs=graphs)  # type: ignore[arg-type]
    return lambda texts, outputs: encoder.encode(texts, outputs=outputs)  # type: ignore[arg-type]


def flag_embedding(folder: str, batch: int, device: str = "cpu") -> Run:
    """Its float16 on a GPU, which is what it does there unless told otherwise; float32 on a CPU."""
    from FlagEmbedding import BGEM3FlagModel

    half = device != "cpu"
    model = BGEM3FlagModel(folder, use_fp16=half, devices=device, batch_size=batch, passage_max_length=8192)

    def run(texts: Sequence[str], outputs: tuple[str, ...]) -> Any:
        more = len(outputs) > 1
        return model.encode(
            list(texts), return_dense=True, return_sparse=more, return_colbert_vecs=more, max_length=8192
        )

    return run


def sentence_transformers(folder: str, precision: str, device: str = "cpu", batch: int = 16) -> Run:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": getattr(torch, precision)})
    return lambda texts, outputs: model.encode(list(texts), batch_size=batch)


def sentence_transformers_openvino(folder: str) -> Run:
    """Its own OpenVINO backend; needs optimum-intel, which exports the model."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, backend="openvino", model_kwargs={"export": True})
    return lambda texts, outputs: model.encode(list(texts), batch_size=16)


def openvino(folder: str, mode: str) -> Run:
    from encode_openvino import load

    return load(folder, mode)


def onnxruntime(folder: str) -> Run:
    """Dynamic int8 as sentence-transformers makes it: weights per channel, activations per tensor; written once."""
    import numpy as np
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from tokenizers import Tokenizer

    from threefold.export.layouts import export

    place = Path(folder) / "onnx-int8"
    if not (place / "int8.onnx").is_file():
        export(folder, place / "float", to="onnx", force=True)
        quantize_dynamic(
            place / "float" / "model.onnx",
            place / "int8.onnx",
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=True,
        )
    session = InferenceSession(str(place / "int8.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def run(texts: Sequence[str], outputs: tuple[str, ...]) -> Any:
        ids = sorted((encoding.ids for encoding in tokenizer.encode_batch(list(texts))), key=len, reverse=True)
        for start in range(0, len(ids), 16):
            part = ids[start : start + 16]
            padded, mask = np.ones((2, len(part), len(part[0])), dtype=np.int64)
            for row, one in enumerate(part):
                padded[row, : len(one)], mask[row, len(one) :] = one, 0
            session.run(["dense"], {"input_ids": padded, "attention_mask": mask})

    return run


def llama_cpp(folder: str, kind: str, together: int) -> Run:
    """llama.cpp through its Python binding, on a conversion of the same checkpoint; `together` tokens in a batch.

    Tokens of a batch attend to those of other texts before the mask drops them, so large batches waste work.
    """
    import numpy as np
    from gguf_file import gguf_file
    from llama_cpp import Llama

    from threefold.text.packing import plan_batches

    path = str(gguf_file(Path(folder), kind))
    model = Llama(path, embedding=True, n_ctx=8192, n_batch=8192, n_ubatch=8192, n_threads=cpu_count(), verbose=False)

    def run(texts: Sequence[str], outputs: tuple[str, ...]) -> Any:
        lengths = np.array([len(text.split()) + 2 for text in texts])
        for rows in plan_batches(lengths, together):
            model.embed([texts[int(i)] for i in rows], normalize=True)

    return run


ON_CPU: dict[str, Contender] = {
    "threefold bfloat16": Contender(threefold, ("bfloat16",), (DENSE, ALL), "bfloat16"),
    "threefold int8": Contender(threefold, ("int8",), (DENSE, ALL), "int8"),
    "threefold float32": Contender(threefold, ("float32",), (ALL,), "float32"),
    "FlagEmbedding default": Contender(flag_embedding, (256,), (ALL,), "float32", "FlagEmbedding"),
    "FlagEmbedding batch 16": Contender(flag_embedding, (16,), (ALL,), "float32", "FlagEmbedding"),
    "sentence-transformers float32": Contender(
        sentence_transformers, ("float32",), (DENSE,), "float32", "sentence_transformers"
    ),
    "sentence-transformers bfloat16": Contender(
        sentence_transformers, ("bfloat16",), (DENSE,), "bfloat16", "sentence_transformers"
    ),
    "sentence-transformers OpenVINO": Contender(sentence_transformers_openvino, (), (DENSE,), "bfloat16", "optimum"),
    "OpenVINO bfloat16": Contender(openvino, ("bf16",), (DENSE,), "bfloat16", "openvino"),
    "OpenVINO float32": Contender(openvino, ("f32",), (DENSE,), "float32", "openvino"),
    "OpenVINO int8": Contender(openvino, ("int8",), (DENSE,), "int8", "openvino"),
    "ONNX Runtime int8": Contender(onnxruntime, (), (DENSE,), "int8", "onnxruntime"),
    "llama.cpp Q8_0": Contender(llama_cpp, ("q8_0", 512), (DENSE,), "int8", "llama_cpp"),
    "llama.cpp F16": Contender(llama_cpp, ("f16", 512), (DENSE,), "float32", "llama_cpp"),
}

#: Peers at several sizes of batch: which one is their best depends on the GPU.
ON_GPU: dict[str, Contender] = {
    "threefold bfloat16": Contender(threefold, ("bfloat16", "cuda"), (DENSE, ALL), "bfloat16"),
    "threefold bfloat16 with graphs": Contender(threefold, ("bfloat16", "cuda", True), (DENSE,), "bfloat16"),
    "threefold float16": Contender(threefold, ("float16", "cuda"), (DENSE, ALL), "float16"),
    **{
        f"FlagEmbedding batch {batch}": Contender(
            flag_embedding, (batch, "cuda"), (DENSE, ALL), "float16", "FlagEmbedding"
        )
        for batch in (16, 64, 256)
    },
    **{
        f"sentence-transformers {numbers} batch {batch}": Contender(
            sentence_transformers, (numbers, "cuda", batch), (DENSE,), numbers, "sentence_transformers"
        )
        for numbers in ("float16", "bfloat16")
        for batch in (32, 256)
    },
}

CONTENDERS = {"cpu": ON_CPU, "cuda": ON_GPU}
