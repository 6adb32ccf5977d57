"""A GPU that is there says what a pretended one cannot: a line for each check, in a minute or two. The exit status is
the number of checks that failed.

    python -m tests.gpu.real [--full]      # --full: times and memory at the size of bge-m3, too

Nothing is downloaded: models are small and random, or the embedded one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import Literal

import numpy as np
import torch
from tests.encoder.checkpoints import bge_m3
from tests.train.small import SPECIAL, batches, model, table
from tests.train.test_retromae import MASK
from tests.train.test_retromae import texts as single_texts
from torch import Tensor

from threefold import Encoder
from threefold.encoder import transfer
from threefold.encoder.attention import Layout, attend, best_path
from threefold.encoder.attention import Path as AttentionPath
from threefold.encoder.bench import fidelity, passages
from threefold.encoder.checkpoint import empty
from threefold.encoder.network import Batch, Network, NetworkConfig
from threefold.encoder.precision import Precision, cuda_bfloat16
from threefold.train.loop import Trainer, TrainSettings
from threefold.train.reader import TrainPrecision
from threefold.train.retromae import RetroMAE
from threefold.types import Encoded, Floats, Ints

CUDA = torch.device("cuda")
PRETENDED = "THREEFOLD_PRETENDED_GPU" in os.environ  # then it is to run, and soon over
BUDGET = 16 if PRETENDED else 1_024
#: Least mean cosine to float32 (docs/speed.md).
BARS: dict[Precision, float] = {"bfloat16": 0.9995, "float16": 0.9995}


def half() -> Literal["bfloat16", "float16"]:
    """The 16 bits that `auto` takes."""
    return "bfloat16" if cuda_bfloat16(CUDA) else "float16"


# ---- the checks: each returns what is worth reading, or raises -------------------------------------------


def facts() -> str:
    named = torch.bfloat16 if half() == "bfloat16" else torch.float16
    name = "pretended" if PRETENDED else torch.cuda.get_device_name()
    return f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, attention by {best_path(CUDA, named, 64)}"


def float32_is_that_of_the_cpu() -> str:
    with small_folder() as folder:
        far, near = (Encoder(folder, device=device, precision="float32").encode(TEXTS) for device in ("cuda", "cpu"))
    return f"differs by {differ(far, near, 1e-4):.1e} at most"


def sixteen_bits_are_near() -> str:
    texts = ordinary()
    exact = opened("float32", device="cpu").encode(texts)
    found = []
    for precision, bar in BARS.items():
        if precision == "bfloat16" and not cuda_bfloat16(CUDA):
            continue
        mean, low = fidelity(exact, opened(precision).encode(texts))
        found.append(f"{precision} " + ", ".join(f"{name} {mean[name]:.5f} (least {low[name]:.5f})" for name in mean))
        assert min(mean.values()) >= bar, found[-1]
    return "; ".join(found)


def batches_in_flight_change_nothing() -> str:
    """Copies beside the next batch bring what copies in its stream bring, to the last bit, however often."""
    encoder, texts, before = opened(half()), ordinary(), transfer.LARGE
    try:
        transfer.LARGE = sys.maxsize  # type: ignore[misc]
        wanted = encoder.encode(texts)
        transfer.LARGE = 1  # type: ignore[misc]
        for _ in range(1 if PRETENDED else 10):
            differ(encoder.encode(texts), wanted, 0.0)
    finally:
        transfer.LARGE = before  # type: ignore[misc]
    return "to the last bit"


def the_host_waits_for_nothing_but_results() -> str:
    encoder, texts = opened(half()), ordinary()
    encoder.encode(texts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        encoder.encode(texts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no operation waits"


def what_does_not_fit_is_cut() -> str:
    """With little more memory than the weights have, as on a GPU that is shared. Copies that still leave, too."""
    texts, before = ordinary(), transfer.LARGE
    encoder = Encoder(precision=half(), graphs=True)
    wanted, budget = encoder.encode(texts), encoder.budget
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    memory = torch.cuda.get_device_properties(CUDA).total_memory
    held = torch.cuda.memory_reserved() + (100_000 if PRETENDED else 48 << 20)
    torch.cuda.set_per_process_memory_fraction(held / memory)
    try:
        transfer.LARGE = 1  # type: ignore[misc]
        worst = max(differ(encoder.encode(texts), wanted, 2e-3) for _ in range(3))
        lowered = encoder.budget
        single = encoder.encode(texts[:1])  # there may be no memory to record it
    finally:
        transfer.LARGE = before  # type: ignore[misc]
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert lowered < budget, f"{budget:,} tokens fitted into {held:,} bytes"
    worst = max(worst, differ(single, encoder.encode(texts[:1]), 2e-3))
    return f"{budget:,} tokens became {lowered:,}; differs by {worst:.1e} at most"


def graphs_find_what_the_network_finds() -> str:
    plain, recorded = (opened(half(), graphs=graphs) for graphs in (False, True))
    queries = [" ".join(text.split()[: 1 + i % 12]) for i, text in enumerate(ordinary())]
    wanted = [plain.encode([query]) for query in queries]
    largest = max(differ(recorded.encode([query]), each, 2e-3) for query, each in zip(queries, wanted, strict=True))
    failed: list[BaseException] = []

    def again() -> None:
        try:
            for query, each in zip(queries, wanted, strict=True):
                differ(recorded.encode([query]), each, 2e-3)
        except BaseException as error:
            failed.append(error)

    threads = [] if PRETENDED else [Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    times = [p50(partial(encoder.encode, queries[:1], outputs=["dense"])) for encoder in (plain, recorded)]
    return (
        f"differ by {largest:.1e} at most; a query takes {1e3 * times[0]:.2f} ms, with graphs {1e3 * times[1]:.2f} ms"
    )


def variable_length_attention_is_that_of_blocks() -> str:
    dtype = torch.bfloat16 if half() == "bfloat16" else torch.float16
    path, found = best_path(CUDA, dtype, 64), []
    lengths = np.array([1, 2, 7, 64, 64, 65, 129, 300], np.int64)
    layout = Layout.of(lengths)
    rows = torch.randn(int(lengths.sum()), 3 * 256, generator=torch.Generator().manual_seed(0)).to(CUDA, dtype)
    wanted, back = grown(rows.float(), layout, "blocks")
    paths: tuple[AttentionPath, ...] = (path, "blocks")
    for how in dict.fromkeys(paths):
        out, gradient = grown(rows, layout, how)
        worst = [float((a.float() - b).abs().max()) for a, b in ((out, wanted), (gradient, back))]
        found.append(f"{how} {worst[0]:.1e}, backwards {worst[1]:.1e}")
        assert max(worst) < 0.1, found[-1]
    return "; ".join(found)


def training_learns_what_the_cpu_learns() -> str:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        wanted: tuple[tuple[str, TrainPrecision], ...] = (("cpu", "float32"), ("cuda", "float32"), ("cuda", half()))
        for device, precision in wanted:
            settings = TrainSettings(log_every=1, idf_steps=10, precision=precision)
            place = Path(folder) / f"{device}-{precision}"
            run = Trainer(model(), table(), batches(1), settings, place, special=SPECIAL, device=device)
            found[f"{device} {precision}"] = losses(run)
    near, far, mixed = found.values()
    np.testing.assert_allclose(far, near, rtol=1e-3)
    np.testing.assert_allclose(mixed, near, rtol=0.15)
    return f"{len(near)} steps, the last loss " + ", ".join(f"{name} {each[-1]:.4f}" for name, each in found.items())


def retromae_learns_too() -> str:
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(log_every=1, precision=half())
        plan, start = [np.arange(step % 3, 24, 3) for step in range(6)], time.perf_counter()
        small = model().to(CUDA)
        found = losses(RetroMAE(small, single_texts(), plan, settings, Path(folder), special=SPECIAL, mask_id=MASK))
    assert np.isfinite(found).all()
    return f"{len(found)} steps of new shapes in {time.perf_counter() - start:.2f} s"


def full_size(layers: int = 24, hidden: int = 1024) -> Iterator[str]:
    """Times and memory of random layers of bge-m3 (or fewer), batch by batch."""
    config = NetworkConfig(vocab=1_000, hidden=hidden, layers=layers, heads=hidden // 64, ffn=4 * hidden)
    dtype = torch.bfloat16 if half() == "bfloat16" else torch.float16
    network = empty(Network, config).to_empty(device="cpu").to(CUDA, dtype).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.normal_(float(name.endswith("norm.weight")), 0.02)
    shapes = ((3, 5),) if PRETENDED else ((512, 128), (8, 8192), (1, 8192), (64, 12), (1, 12))
    for texts, length in shapes:
        layout, tokens = Layout.of(np.full(texts, length)), texts * length
        ids = np.random.default_rng(0).integers(0, config.vocab, tokens)

        @torch.inference_mode()
        def run(ids: Ints = ids, layout: Layout = layout) -> None:
            network(Batch.of(ids, layout, config.first_position, CUDA))
            torch.cuda.synchronize()

        torch.cuda.reset_peak_memory_stats()
        seconds = p50(run)
        flops = tokens * (config.flops_per_token + 4 * length * hidden * layers)
        rates = f"{tokens / seconds:,.0f} tokens/s, {flops / seconds / 1e12:.0f} TFLOP/s with attention"
        most = torch.cuda.max_memory_allocated() / 2**30
        yield f"{texts} x {length} tokens: {1e3 * seconds:.2f} ms, {rates}, {most:.2f} GiB at most"


def attention_alone(heads: int = 16) -> Iterator[str]:
    """The variable-length kernel, and what PyTorch takes for texts of one length (on Hopper cuDNN)."""
    dtype = torch.bfloat16 if half() == "bfloat16" else torch.float16
    paths: tuple[AttentionPath, ...] = (best_path(CUDA, dtype, 64), "blocks")
    for texts, length in ((2, 5),) if PRETENDED else ((512, 128), (128, 512), (8, 8192), (1, 8192)):
        qkv, layout = torch.randn(texts * length, 3 * heads * 64).to(CUDA, dtype), Layout.of(np.full(texts, length))

        @torch.inference_mode()
        def run(path: AttentionPath, qkv: Tensor = qkv, layout: Layout = layout) -> None:
            for _ in range(10):
                attend(qkv, heads, layout, path)
            torch.cuda.synchronize()

        times = [f"{path} {1e2 * p50(partial(run, path)):.3f} ms" for path in dict.fromkeys(paths)]
        yield f"attention alone, {texts} x {length}: {', '.join(times)}"


CHECKS: tuple[Callable[[], str], ...] = (
    facts, float32_is_that_of_the_cpu, sixteen_bits_are_near, batches_in_flight_change_nothing,
    the_host_waits_for_nothing_but_results, what_does_not_fit_is_cut, graphs_find_what_the_network_finds,
    variable_length_attention_is_that_of_blocks, training_learns_what_the_cpu_learns, retromae_learns_too,
)  # fmt: skip

# ---- what they are made of -------------------------------------------------------------------------------

TEXTS = ["", "fox", "the quick brown fox", "jumps over", "jumps over", "the lazy dog " * 9]


def ordinary() -> list[str]:
    """Texts for a model with weights that were learnt."""
    return TEXTS[1:4] if PRETENDED else passages(96)


@cache
def opened(precision: Precision, *, device: str = "cuda", graphs: bool = False) -> Encoder:
    """The embedded model, in small batches, so that there are several."""
    return Encoder(device=device, precision=precision, budget=BUDGET, graphs=graphs)


@contextmanager
def small_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield bge_m3(Path(folder) / "model")


def differ(found: Encoded, wanted: Encoded, most: float) -> float:
    """The largest difference of dense, sparse and token vectors, which may be `most`."""
    assert found.dense is not None
    assert wanted.dense is not None
    pairs: list[tuple[Floats, Floats]] = [(found.dense, wanted.dense)]
    if found.multi is not None and wanted.multi is not None:
        pairs.append((found.multi.rows, wanted.multi.rows))
    if found.sparse is not None and wanted.sparse is not None:
        rows = [(found.sparse.row(i), wanted.sparse.row(i)) for i in range(len(wanted))]
        both = [(a.get(id, 0.0), b.get(id, 0.0)) for a, b in rows for id in a.keys() | b.keys()]
        pairs.append((np.array([a for a, _ in both]), np.array([b for _, b in both])))
    worst = max(float(np.abs(a - b).max(initial=0.0)) for a, b in pairs)
    assert worst <= most, f"they differ by {worst}, allowed are {most}"
    return worst


def grown(rows: Tensor, layout: Layout, path: AttentionPath) -> tuple[Tensor, Tensor]:
    """Attention and the gradient of the sum of its squares."""
    leaf = rows.detach().clone().requires_grad_()
    out = attend(leaf, 4, layout, path)
    torch.autograd.backward(out.float().square().sum())
    assert leaf.grad is not None
    return out.detach(), leaf.grad


def losses(run: Trainer | RetroMAE) -> list[float]:
    totals: list[float] = []
    run.run(lambda line: totals.append(line["total"]))
    return totals


def p50(call: Callable[[], object]) -> float:
    """Median seconds of a warm call."""
    taken = []
    for _ in range(2 if PRETENDED else 13):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:] or taken)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="times and memory at the size of bge-m3, too")
    full = options.parse_args(arguments).full
    if not torch.cuda.is_available():
        say("PyTorch sees no CUDA GPU")
        return 1
    failed = 0
    for check in CHECKS:
        start = time.perf_counter()
        try:
            said = f"ok      {check.__name__}: {check()}"
        except Exception:
            failed += 1
            said = f"FAILED  {check.__name__}\n{traceback.format_exc()}"
        say(f"{said} ({time.perf_counter() - start:.1f} s)")
    opened.cache_clear()
    if full:
        for line in (*full_size(*((2, 64) if PRETENDED else ())), *attention_alone(2 if PRETENDED else 16)):
            say(f"        {line}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
