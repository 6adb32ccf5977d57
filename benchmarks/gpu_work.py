"""What a GPU is told to do: the products, the operations and the waits of the same texts, by threefold and its peers.

    python benchmarks/gpu_work.py [--passages 256]

Needs no GPU: `tests/gpu/pretend.py` stands in for one, and everything that is told to it is counted. It says nothing of
time, but of what time depends on: how many multiplications (padding is multiplied like text), how many operations the
host must tell one by one, and how often it stands still until the GPU has finished everything.

The network has the layers of bge-m3 and a sixteenth of its width; FLOPs are scaled to the width of bge-m3, products by
256 and attention by 16. Attention counts as one operation for all contenders, and by the FLOPs of its products, padding
included. Views move nothing and do not count. The workloads are those of `encode.py`, with a shorter document C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.gpu.run import load_guard  # noqa: E402  # before PyTorch

if not load_guard():
    sys.exit("this needs a C++ compiler (CXX names one)")

import torch  # noqa: E402
from encode import tokens_of, workloads  # noqa: E402
from encode_peers import ON_GPU  # noqa: E402
from machine import machine  # noqa: E402
from random_checkpoint import SIZES, checkpoint  # noqa: E402
from tests.gpu.pretend import Far, Gpu, pretended  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

CONTENDERS = (
    "threefold bfloat16", "threefold bfloat16 with graphs", "FlagEmbedding batch 16", "FlagEmbedding batch 256",
    "sentence-transformers bfloat16 batch 32", "sentence-transformers bfloat16 batch 256",
)  # fmt: skip
PRODUCTS = ("aten.mm.default", "aten.addmm.default", "aten.bmm.default")
VARLEN = "torch_attn._varlen_attn.default"
SIZE, WIDER = "thin", SIZES["full"][0] // SIZES["thin"][0]


class Attention(TorchFunctionMode):
    """One operation, whatever it is made of here."""

    def __init__(self, count: Count) -> None:
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention or not isinstance(args[0], Far):
            return func(*args, **(kwargs or {}))
        *heads, rows, dim = args[0].shape
        self.count.attention += 4 * torch.Size(heads).numel() * rows * args[1].shape[-2] * dim
        self.count.operations += 1
        with self.count.paused():
            return func(*args, **(kwargs or {}))


class Count:
    """Of everything that the GPU is told."""

    def __init__(self, gpu: Gpu) -> None:
        self.products = self.attention = self.operations = 0
        self._on = True
        gpu.at_operation = self.add

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._on = self._on, False
        yield
        self._on = before

    def add(self, func: Any, args: Any) -> None:
        if not self._on or func.is_view or "detach" in str(func):
            return
        self.operations += 1
        if str(func) in PRODUCTS:
            a, b = args[-2:]
            self.products += 2 * a.numel() * b.shape[-1]
        elif str(func) == VARLEN:
            q, borders = args[0], args[3].host
            self.attention += 4 * int((borders.diff().long() ** 2).sum()) * q.shape[1] * q.shape[2]


def counted(name: str, folder: str, texts: list[str], outputs: tuple[str, ...]) -> dict[str, int]:
    """Of the second call: the first one may prepare what the others use."""
    with pretended() as gpu:
        contender = ON_GPU[name]
        run = contender.build(folder, *contender.options)
        run(texts, outputs)
        gpu.waits.clear()
        count = Count(gpu)
        with Attention(count):
            run(texts, outputs)
        flops = WIDER**2 * count.products + WIDER * count.attention
        return {"flops": flops, "operations": count.operations, "waits": len(gpu.waits)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--passages", type=int, default=256)
    options.add_argument("--longest", type=int, default=2048)
    options.add_argument("--output", type=Path, default=ROOT / "results" / "gpu-work.json")
    args = options.parse_args()
    folder = str(checkpoint(SIZE))
    jobs = workloads(args.passages, args.longest)
    result: dict[str, Any] = {"layers": SIZES[SIZE][1], **machine()}
    result |= {"tokens": {key: tokens_of(texts) for key, texts in jobs.items()}, "work": {}}
    for name in CONTENDERS:
        if ON_GPU[name].missing:
            print(f"{name}: {ON_GPU[name].missing}")
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        result["work"][name] = {
            f"{key} {'all' if len(outputs) > 1 else 'dense'}": counted(name, folder, texts, outputs)
            for key, texts in jobs.items()
            for outputs in ON_GPU[name].kinds
        }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def show(result: dict[str, Any]) -> None:
    for kind in sorted({kind for found in result["work"].values() for kind in found}):
        print(f"\n{kind}: {result['tokens'][kind[0]]:,} tokens, {result['layers']} layers")
        found = {name: work[kind] for name, work in result["work"].items() if kind in work}
        least = next(iter(found.values()))["flops"]
        for name, work in found.items():
            print(
                f"  {name:42} {work['flops'] / 1e9:10.1f} GFLOP ({work['flops'] / least:4.2f})"
                f" {work['operations']:7,} operations {work['waits']:5} waits"
            )


if __name__ == "__main__":
    main()
