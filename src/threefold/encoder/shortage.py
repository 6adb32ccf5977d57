"""What a device says when it has no memory left, and how it gets some back.

An error holds the frames that it passed, and they hold the tensors of what failed: whoever tries again while it lives
has less memory than before. So an error ends here, in `tried`, and only its words go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeVar

import torch

Made = TypeVar("Made")

#: What CUDA (also of pinned memory), cuBLAS and Apple's GPU say of memory that is not there. The last is all that is
#: left to see of it where a graph is being recorded: giving back memory spoils the recording (pytorch#159594).
_NO_MEMORY: Final = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory",
    "operation failed due to a previous error during capture",
)  # fmt: skip

#: Held while a graph is recorded: waiting for the whole device spoils a recording, of whatever encoder.
RECORDING: Final = Lock()


@dataclass(frozen=True, slots=True)
class Short:
    """There was no memory for it; what PyTorch said."""

    said: str


def is_short(error: BaseException) -> bool:
    """Whether a device had no memory left. That of the host is another matter: there it stays the error that it is."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)
    )


def tried(work: Callable[[], Made]) -> Made | Short:
    """What the work makes, or that there was no memory for it. Nothing keeps what had been made by then."""
    try:
        return work()
    except Exception as error:
        if not is_short(error):
            raise
        return Short(str(error).partition("\n")[0])


def give_back(device: torch.device) -> None:
    """Wait for the device, and give it the memory that PyTorch keeps for later. Copies in other streams may still read
    memory that nobody holds any more."""
    if device.type == "cuda":
        with RECORDING:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
