"""Network and heads together, and the settings that describe them: what is trained, saved and loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from threefold.config import Settings
from threefold.encoder.heads import Heads, HeadsConfig
from threefold.encoder.network import Network, NetworkConfig
from threefold.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelConfig(Settings):
    """`threefold.json`: the whole model but its weights.

    max_tokens       longest text, specials included
    query_prompt     put before every query
    document_prompt  put before every document
    matryoshka       dimensions at which the dense vector may be cut, largest first; empty: never
    fusion           weights of dense, sparse and multi in a hybrid search; the default is that of BGE-M3's training
    origin           fingerprint of the model that this one was converted from, in numbers of another form; collections
                     made with the one may be searched with the other
    """

    network: NetworkConfig
    heads: HeadsConfig
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    matryoshka: tuple[int, ...] = ()
    fusion: tuple[float, ...] = (1.0, 0.3, 1.0)
    format: int = 1
    name: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if not 3 <= self.max_tokens <= self.network.max_tokens:
            raise ConfigError(f"max_tokens must be from 3 to {self.network.max_tokens}; got {self.max_tokens}")
        if len(self.fusion) != 3:
            raise ConfigError(f"fusion must have three weights (dense, sparse, multi); got {self.fusion}")
        wrong = [dim for dim in self.matryoshka if not 1 <= dim <= self.network.hidden]
        if wrong:
            raise ConfigError(f"matryoshka dimensions must be from 1 to {self.network.hidden}; got {wrong[0]}")


class Model(nn.Module):
    """Packed batches in; the heads make the three representations of its hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Network(config.network)
        self.heads = Heads(config.heads, config.network.hidden)
