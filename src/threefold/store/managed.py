"""What all our stores are beside their calls: they know their manifest, and are closed at the end of a `with`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from threefold.config import Manifest


class Managed(ABC):
    """A store with its manifest, and a context manager."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @abstractmethod
    def close(self) -> None: ...
