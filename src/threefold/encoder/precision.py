"""Where and in which numbers the network runs. `auto` takes what the processor multiplies fastest, and says so.

float32   exact reference
bfloat16  weights and activations in 16 bits, norms and sums inside in 32: needs AVX512-BF16, AMX or a GPU. Our kernels
          for other processors keep activations in float32: as many products, half of the weights to read
int8      CPUs only: matrices of the layers in int8 with a scale per row, activations in int8 with a scale per token;
          tables, norms, attention and heads stay in float. Half the memory of bfloat16
float16   GPUs only: on CPUs it is emulated

`auto` never chooses int8, whose vectors differ enough to be seen in some ranking (docs/speed.md has the figures): a
loss is for the user to choose.
"""

from __future__ import annotations

import logging
import platform
from typing import Final, Literal, TypeVar

import torch
from torch import nn

from threefold.encoder import native
from threefold.encoder.checkpoint import Loaded, empty
from threefold.encoder.model import Model
from threefold.encoder.native import NativeLayers
from threefold.encoder.network import Network, NetworkConfig
from threefold.encoder.packed import INNER_BYTES, PackedNetwork, activations
from threefold.encoder.products import fast_bfloat16, has_bfloat16, has_int8, has_onednn
from threefold.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: A kernel has one block for each text of a batch, at most 65,535, and a text has two tokens or more.
MOST_ON_CUDA: Final = 131_070
#: Tokens that fill any GPU with work, and what is tried on the smallest.
FILLS_CUDA: Final = 65_536
LEAST_ON_CUDA: Final = 2_048

M = TypeVar("M", bound=nn.Module)

log = logging.getLogger(__name__)


def choose_device(device: str) -> torch.device:
    """`auto`: a CUDA GPU, else Apple's, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:0 or mps") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {device!r} is not supported; use auto, cpu, cuda, cuda:0 or mps")
    if chosen.type != "cuda" and chosen.index:  # PyTorch would take any number for the first
        raise InputError(f"device {device!r} was asked for, but there is one only; use {chosen.type!r}")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {device!r} was asked for, but PyTorch sees no GPU of Apple's; use device='auto'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for, but PyTorch sees no CUDA GPU; use device='auto'")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"device {device!r} was asked for, but PyTorch sees {count}: cuda:0 to cuda:{count - 1}")
    return torch.device("cpu") if chosen.type == "cpu" else chosen  # one name: cpu:0 is the same


def choose_precision(precision: str, device: torch.device, config: NetworkConfig | None = None) -> str:
    """The precision to run in. `auto` is bfloat16 where there are instructions for it or our kernels run a network of
    this configuration (None: PyTorch will), else float16 on a CUDA GPU and float32 elsewhere."""
    check_precision(precision, device)
    if precision == "auto":
        precision = _fastest(device, config)
        log.info("precision auto: %s on %s", precision, device)
    return precision


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device cannot do, before a model is looked for."""
    if precision not in ("auto", *_TYPES, "int8"):
        raise InputError(f"unknown precision {precision!r}; use auto, {', '.join(_TYPES)} or int8")
    if precision == "float16" and device.type == "cpu":
        raise InputError("float16 on a CPU is emulated and slow; use bfloat16 or float32")
    if precision == "bfloat16" and device.type == "cuda" and not cuda_bfloat16(device):
        raise InputError(f"{device} emulates bfloat16, slowly and in much memory; use float16 or float32")
    if precision == "int8" and device.type != "cpu":
        raise InputError(f"int8 runs on CPUs, and the device is {device}; use bfloat16 or float16")
    if precision == "int8" and not has_int8():
        raise InputError(f"int8 needs oneDNN, which PyTorch lacks on {platform.machine()}; use bfloat16 or float32")


def choose_budget(config: NetworkConfig, device: torch.device, budget: int | None = None) -> int:
    """Tokens in one forward pass, unless `budget` says: on a CPU as many as keep inner states in the caches, on a CUDA
    GPU enough to fill it and no more than its memory holds, on Apple's so few that the scores of one block have no more
    than 2^32 bytes."""
    if budget is None:
        if device.type == "cpu":
            return min(4_096, max(512, INNER_BYTES // (2 * config.ffn)))
        return _cuda_budget(config, device) if device.type == "cuda" else 8_192
    if budget < 1:
        raise InputError(f"the token budget must be at least 1; got {budget}")
    if device.type == "cuda" and budget > MOST_ON_CUDA:
        raise InputError(f"the token budget must be at most {MOST_ON_CUDA} on a CUDA GPU; got {budget}")
    return budget


def _cuda_budget(config: NetworkConfig, device: torch.device) -> int:
    """A quarter of the memory for the states of a batch; the rest is for weights, results that still leave, others."""
    token = 4 * (2 * config.ffn + 3 * config.hidden)  # two inner states, two states, token vectors; 32 bits at most
    states = torch.cuda.get_device_properties(device).total_memory // 4
    return max(LEAST_ON_CUDA, min(FILLS_CUDA, states // token))


def cuda_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA GPU multiplies bfloat16: Ampere and newer, and all of AMD's that PyTorch runs on."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def _fastest(device: torch.device, config: NetworkConfig | None) -> str:
    if device.type == "cuda":
        return "bfloat16" if cuda_bfloat16(device) else "float16"
    fast = device.type == "cpu" and (fast_bfloat16() or (config is not None and native.runs(config)))
    return "bfloat16" if fast else "float32"


def packs(precision: str, device: torch.device, config: NetworkConfig) -> bool:
    """Whether a network in this precision runs as a `PackedNetwork`."""
    if device.type != "cpu":
        return False
    if precision == "bfloat16":
        return has_bfloat16() or native.runs(config)
    return {"int8": has_int8(), "float32": has_onednn()}.get(precision, False)


def prepare(loaded: Loaded, precision: str, device: torch.device) -> Model:
    """The model of a checkpoint, ready to run; only what this precision needs is read from the file."""
    if not packs(precision, device, loaded.config.network):
        return cast(loaded.model, precision, device)
    model = empty(Model, loaded.config)
    network = PackedNetwork(loaded.config.network, lambda name: loaded.stored(f"network.{name}"), precision)
    model.network, dtype = network, network.dtype
    heads = {name: loaded.stored(f"heads.{name}").to(dtype) for name in model.heads.state_dict()}
    model.heads.load_state_dict(heads, assign=True)
    return model.eval().requires_grad_(False)


def cast(model: M, precision: str, device: torch.device) -> M:
    """A module in memory in this precision on this device, ready to run and without gradients."""
    if isinstance(model, Network) and packs(precision, device, model.config):
        return PackedNetwork.of(model, precision).eval()  # type: ignore[return-value]  # it is a Network
    dtype = activations(precision) if precision == "int8" else _TYPES[precision]
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def held_bytes(*models: nn.Module | None) -> int:
    """Memory of the weights of these models, each counted once; parts of it may be pages of a file."""
    held = {id(model): model for model in models if model is not None}.values()
    parts = {id(part): part for model in held for part in model.modules() if isinstance(part, NativeLayers)}.values()
    return sum(one.nbytes for model in held for one in model.parameters()) + sum(part.held_bytes for part in parts)
