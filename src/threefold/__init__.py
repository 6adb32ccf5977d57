"""threefold: dense, sparse and multi-vector retrieval from one forward pass.

The public names are resolved on first use, so `import threefold` loads neither torch nor the store's engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threefold.client import AsyncClient, Client
    from threefold.collection import Collection
    from threefold.encoder.cross import CrossEncoder
    from threefold.encoder.encoder import Encoder
    from threefold.encoder.pool import EncoderPool
    from threefold.errors import ThreefoldError
    from threefold.types import Chunk, Document, Encoded, Hit, Ragged, Sparse

__version__ = "0.1.0"

#: Public name -> module that defines it.
_WHERE = {
    "AsyncClient": "threefold.client",
    "Chunk": "threefold.types",
    "Client": "threefold.client",
    "Collection": "threefold.collection",
    "CrossEncoder": "threefold.encoder.cross",
    "Document": "threefold.types",
    "Encoded": "threefold.types",
    "Encoder": "threefold.encoder.encoder",
    "EncoderPool": "threefold.encoder.pool",
    "Hit": "threefold.types",
    "Ragged": "threefold.types",
    "Sparse": "threefold.types",
    "ThreefoldError": "threefold.errors",
}

__all__ = [
    "AsyncClient",
    "Chunk",
    "Client",
    "Collection",
    "CrossEncoder",
    "Document",
    "Encoded",
    "Encoder",
    "EncoderPool",
    "Hit",
    "Ragged",
    "Sparse",
    "ThreefoldError",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'threefold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
