"""The precisions of a model on this machine: speed, latency, memory, and how far their vectors are from float32.

Each precision runs in a process of its own, one after the other, so that its memory is its own and no precision
profits from what another one left warm.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from threefold.encoder.counts import check_count
from threefold.encoder.encoder import Encoder
from threefold.encoder.memory import peak_bytes
from threefold.encoder.native import status
from threefold.encoder.precision import Precision, check_precision, choose_device, cuda_bfloat16
from threefold.encoder.products import fast_bfloat16, has_int8
from threefold.errors import InputError, WorkerError
from threefold.types import Encoded, Floats, Sparse

EXACT: Final[Precision] = "float32"
#: So many texts are compared with float32, representation by representation.
COMPARED = 32
#: Passages of the built-in workload: a GPU reads more of them at a time than a CPU in a second.
_PASSAGES, _PASSAGES_CUDA = 64, 2_048
#: Passages of the built-in workload have lognormal lengths about this median, in characters (about 100 tokens).
_MEDIAN_CHARACTERS, _SPREAD, _LONGEST = 400, 0.6, 2_000

_SENTENCES = (
    "The committee postponed its decision until the measurements of the second reactor had been repeated.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
    "How do I reset the password of my account when I no longer have access to the old phone?",
    "Der Vertrag verlängert sich um ein Jahr, wenn er nicht drei Monate vor Ablauf gekündigt wird.",
    "La bibliothèque municipale ouvre désormais aussi le dimanche matin, de neuf heures à midi.",
    "Los agricultores del valle esperan que las lluvias de otoño llenen por fin los embalses.",
    "Поезд отправляется с третьего пути через десять минут, просьба приготовить билеты.",
    "この薬は食後に一日二回、コップ一杯の水で飲んでください。",
    "这座桥建于十七世纪，至今仍然是城里最繁忙的通道之一。",
    "يفتح المتحف أبوابه للزوار طوال أيام الأسبوع ما عدا يوم الاثنين.",
    "किसान सुबह जल्दी खेत पर जाते हैं और शाम को बाज़ार में सब्ज़ियाँ बेचते हैं।",
    "Maktaba ya kijiji ina vitabu vya watoto na magazeti ya zamani kutoka pwani.",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One precision of one model.

    tokens_per_second  median over the rounds, all representations that the model has
    p50, p95           seconds of one short query, dense only
    opening            seconds until the model could encode
    weight_bytes       the weights as they are held; parts of them in pages of a file that processes share
    peak_bytes         most memory that the process ever had, Python and its libraries included; of a GPU, what it
                       took of the GPU's; 0 where unknown
    kernels            what ran the layers: "native" or "PyTorch"
    cosines            to float32, per representation: mean over the texts
    lowest             the lowest of those
    truncated          texts that were longer than the model reads, and were cut
    """

    precision: Precision
    tokens: int
    tokens_per_second: float
    p50: float
    p95: float
    opening: float
    weight_bytes: int
    peak_bytes: int
    cosines: dict[str, float]
    lowest: dict[str, float]
    kernels: str = ""
    truncated: int = 0

    def cost_per_million_tokens(self, price_per_hour: float) -> float:
        """What a million tokens cost on a machine of this price, in its currency."""
        return price_per_hour / (self.tokens_per_second * 3600) * 1e6


def passages(count: int = _PASSAGES, seed: int = 0) -> list[str]:
    """Texts in twelve languages of mixed lengths, about 120 tokens each; the same for the same seed."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(_MEDIAN_CHARACTERS), _SPREAD, count), 40, _LONGEST)
    texts = []
    for length in lengths.astype(int):
        text = ""
        while len(text) < length:
            text += _SENTENCES[int(rng.integers(len(_SENTENCES)))] + " "
        texts.append(text[:length].rstrip())
    return texts


def usual_precisions(device: torch.device) -> tuple[Precision, ...]:
    """What is worth measuring there: emulated bfloat16 is a hundred times slower than float32."""
    if device.type == "cuda":
        return ("float32", "float16", "bfloat16") if cuda_bfloat16(device) else ("float32", "float16")
    if device.type == "mps":
        return ("float32", "float16")
    possible: dict[Precision, bool] = {"float32": True, "bfloat16": fast_bfloat16() or not status(), "int8": has_int8()}
    return tuple(name for name, has in possible.items() if has)


def bench(
    model: str | None = None,
    texts: Sequence[str] | None = None,
    *,
    precisions: Sequence[Precision] = (),
    rounds: int = 3,
    revision: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Measured]:
    """Measure every precision in turn on one device. float32 runs first, for the others are compared with it.

    precisions  none: those that this device does not have to emulate
    threads     of each process; None: all cores
    progress    called with each precision before it begins
    """
    place = choose_device(device)
    usual = _PASSAGES_CUDA if place.type == "cuda" else _PASSAGES
    texts = passages(usual) if texts is None else list(texts)
    if not texts or rounds < 1:
        raise InputError(f"a measurement needs texts and rounds; got {len(texts)} texts and {rounds} rounds")
    if threads is not None:
        check_count("threads", threads)
    wanted = list(dict.fromkeys(precisions or usual_precisions(place)))
    for precision in wanted:
        check_precision(precision, place)  # refused now, not after the others were measured
    exact: Encoded | None = None
    for precision in dict.fromkeys([EXACT, *wanted]):
        if progress is not None:
            progress(precision)
        measured, encoded = _in_own_process(_Job(model, revision, precision, tuple(texts), rounds, str(place), threads))
        exact = encoded if exact is None else exact
        if precision in wanted:
            mean, low = fidelity(exact, encoded)
            yield replace(measured, cosines=mean, lowest=low)


def fidelity(exact: Encoded, other: Encoded) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and lowest cosine over the texts, for each representation that both have.

    Dense: of the vectors. Sparse: of the weights as vectors over the vocabulary. Multi: mean over a text's tokens.
    """
    found: dict[str, Floats] = {}
    if exact.dense is not None and other.dense is not None:
        found["dense"] = _row_cosines(exact.dense, other.dense)
    if exact.sparse is not None and other.sparse is not None:
        found["sparse"] = _sparse_cosines(exact.sparse, other.sparse)
    if exact.multi is not None and other.multi is not None:
        pairs = zip(exact.multi, other.multi, strict=True)
        found["multi"] = np.array([_row_cosines(a, b).mean() for a, b in pairs if len(a)], dtype=np.float32)
    filled = {name: values for name, values in found.items() if len(values)}
    return (
        {name: float(values.mean()) for name, values in filled.items()},
        {name: float(values.min()) for name, values in filled.items()},
    )


def _row_cosines(a: Floats, b: Floats) -> Floats:
    """(n,) of the rows of (n, d) and (n, d)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Floats = (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


def _sparse_cosines(a: Sparse, b: Sparse) -> Floats:
    """(n,) of texts that have a weight on either side; 0 where only one has."""
    cosines = []
    for i in range(len(a)):
        x, y = a.row(i), b.row(i)
        if x or y:
            dot = sum(weight * y.get(id, 0.0) for id, weight in x.items())
            norms = np.linalg.norm(list(x.values())) * np.linalg.norm(list(y.values()))
            cosines.append(dot / max(float(norms), 1e-12))
    return np.array(cosines, dtype=np.float32)


# ---- in the other process --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    model: str | None
    revision: str | None
    precision: Precision
    texts: tuple[str, ...]
    rounds: int
    device: str
    threads: int | None


def _in_own_process(job: _Job) -> tuple[Measured, Encoded]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, job).result()
        except BrokenProcessPool as error:
            raise WorkerError(f"the process of {job.precision} ended; was its memory too small?") from error


def _measure(job: _Job) -> tuple[Measured, Encoded]:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    start = time.perf_counter()
    encoder = Encoder(job.model, device=job.device, revision=job.revision, precision=job.precision)
    opening = time.perf_counter() - start
    compared = encoder.encode(job.texts[:COMPARED])  # warms up, too
    queries = [" ".join(text.split()[:8]) for text in job.texts[:COMPARED]]
    if encoder.device.type == "cuda":  # every new size chooses kernels and makes buffers, once
        encoder.encode(job.texts)
        for query in queries:
            encoder.encode_queries([query], outputs=["dense"])
    seconds, tokens, truncated = [], 0, 0
    for _ in range(job.rounds):
        start = time.perf_counter()
        encoded = encoder.encode(job.texts)
        seconds.append(time.perf_counter() - start)
        tokens, truncated = int(encoded.tokens.sum()), int(encoded.truncated.sum())
        del encoded  # or the next round has twice its memory
    waits = []
    for query in queries:
        start = time.perf_counter()
        encoder.encode_queries([query], outputs=["dense"])
        waits.append(time.perf_counter() - start)
    measured = Measured(
        precision=job.precision,
        tokens=tokens,
        tokens_per_second=tokens / float(np.median(seconds)),
        p50=float(np.percentile(waits, 50)),
        p95=float(np.percentile(waits, 95)),
        opening=opening,
        weight_bytes=encoder.weight_bytes,
        peak_bytes=most_bytes(encoder.device),
        kernels=encoder.kernels.split(" ")[0],
        cosines={},
        lowest={},
        truncated=truncated,
    )
    return measured, compared


def most_bytes(device: torch.device) -> int:
    """The most memory that this process ever had, on the device where its model is."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else peak_bytes()
