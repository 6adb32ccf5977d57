"""Half precision can overflow: what is not finite is computed again in float32, and is an error if it stays so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from torch import nn

from threefold.encoder.precision import held_bytes
from threefold.encoder.shortage import Short, tried
from threefold.encoder.transfer import OnTheWay
from threefold.errors import DeviceMemoryError, NumericalError
from threefold.types import Floats

M = TypeVar("M", bound=nn.Module)

log = logging.getLogger(__name__)


class Finite(Generic[M]):
    """A model in its precision, and the same in float32, which is loaded by the first batch that needs it.

    name   of the model, for messages
    exact  loads it in float32
    """

    def __init__(self, name: str, model: M, precision: str, exact: Callable[[], M]) -> None:
        self.model = model
        self._name, self._precision, self._load = name, precision, exact
        self._exact: M | None = model if precision == "float32" else None
        self._lock = Lock()

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, as they are held now."""
        return held_bytes(self.model, self._exact)

    def checked(self, found: OnTheWay, again: Callable[[M], OnTheWay]) -> dict[str, Floats]:
        """The arrays that the model made of one batch, or those that `again` makes in float32."""
        if found.finite():
            return found.arrays()
        with self._lock:
            if self._exact is None:
                log.warning("%s overflows in %s; such batches run in float32", self._name, self._precision)
                self._exact = self._loaded()
        if self._exact is not self.model and (found := again(self._exact)).finite():
            return found.arrays()
        raise NumericalError(f"{self._name} gave NaN or infinity in float32: its weights are damaged")

    def _loaded(self) -> M:
        """A smaller batch would not help where the weights do not fit."""
        model = tried(self._load)
        if isinstance(model, Short):
            raise DeviceMemoryError(
                f"{self._name} overflows in {self._precision}, and its weights in float32 do not fit beside it. Take "
                f"float32 from the start, or bfloat16 instead of float16. PyTorch says: {model.said}"
            )
        return model
