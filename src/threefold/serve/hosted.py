"""The server of `threefold serve` in a process that somebody else starts, listens for and replaces: one of several.

    settings ─► hosted(), which refuses what several servers would do wrong ─► Hosted, sent to each process
             ─► open(), there ─► Application

Servers with the same settings are one service as long as nothing lasts in any of them. Knows no Ray. Loads no PyTorch
until a process is opened, so that its variables are set before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from threefold import __version__
from threefold.errors import ConfigError, InputError, UnavailableError
from threefold.serve.cores import share_cores
from threefold.serve.memory import bound_caches

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response

    from threefold.serve.app import Contract
    from threefold.serve.http import Call
    from threefold.serve.server import Server

Device = Literal["cpu", "cuda"]

_COUNTED = "each server would count for itself. Run one `threefold serve`, or let what stands in front ask for keys"
_LISTENS = "whoever hosts the servers listens; say it there"
#: Settings that several servers cannot keep, and why.
REFUSED: Final[Mapping[str, str]] = {
    "collections": "a folder of collections belongs to one process. Run one `threefold serve` for it, or open a "
    "`Collection` with url= in your own program",
    "keys_file": f"keys have limits and credit, and {_COUNTED}",
    "usage_file": f"usage is a file of one machine, and {_COUNTED}",
    "host": _LISTENS,
    "port": _LISTENS,
    "tls_cert": _LISTENS,
    "tls_key": _LISTENS,
}
METRICS: Final = "/metrics"


@dataclass(frozen=True, slots=True)
class Hosted:
    """What each process is made of.

    settings  of `ServeConfig`, as a dictionary; read in full, so no file or variable is needed where they are used
    version   of threefold where they were read
    """

    settings: Mapping[str, Any]
    version: str = __version__

    @property
    def drain_s(self) -> int:
        """Seconds that running requests get when a process ends."""
        return int(self.settings["drain_s"])

    def on(self, device: Device) -> Hosted:
        """The same on the device that each process has to itself. Settings that say otherwise are refused."""
        further = [one | {"device": _placed(one["device"], device)} for one in self.settings["models"]]
        main = _placed(self.settings["device"], device)
        if main != device:
            raise ConfigError(f"device is {main!r}, but each process is given a GPU that nothing would use")
        return replace(self, settings={**self.settings, "device": main, "models": further})

    async def open(self, threads: int) -> Application:
        """The models, loaded, in this process and with so many threads at most; once."""
        if self.version != __version__:
            raise InputError(
                f"this machine has threefold {__version__}, the settings are of {self.version}; install the same "
                "everywhere"
            )
        share_cores()  # before the next lines import PyTorch
        bound_caches()
        from threefold.encoder.threads import at_most
        from threefold.serve import logs
        from threefold.serve.run import make_server
        from threefold.serve.settings import ServeConfig

        config = ServeConfig.from_dict(self.settings, "serve")
        logs.configure(config.log_format)
        at_most(threads)
        server = make_server(config)
        await server.start()
        return Application(server)


class Application:
    """A server that has started, as an application for somebody else's socket. It drains when its lifespan ends."""

    def __init__(self, server: Server) -> None:
        from threefold.serve.app import CONTRACTS, build

        self._server = server
        self.asgi: Starlette = build(server, [_without_metrics(one) for one in CONTRACTS])

    def check(self) -> None:
        """An error while this server is not ready, in the words of `GET /health`."""
        if (problem := self._server.problem()) is not None:
            raise UnavailableError(problem, 1.0)


def hosted(
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Hosted:
    """The settings of each server, as `threefold serve` reads them: file, variables, then these.

    settings  by their dotted names, such as {"model": "BAAI/bge-m3", "limits.queued_tokens": 500_000}
    """
    from threefold.serve.load import FILE_VARIABLE, load_config
    from threefold.serve.settings import ServeConfig

    file = config or environment.get(FILE_VARIABLE)
    chosen, usual = load_config(Path(file) if file else None, environment, settings or {}), ServeConfig()
    for name, why in REFUSED.items():
        if getattr(chosen, name) != getattr(usual, name):
            raise ConfigError(f"{name} is not for several servers: {why}")
    return Hosted(chosen.to_dict())


def _placed(asked: str, device: Device) -> str:
    """Where a model goes that asks for this device; empty: where the main one is."""
    if asked not in ("", "auto", "cpu", "cuda"):
        raise ConfigError(f"device {asked!r}: each process is given its GPU; use auto, cpu or cuda")
    if asked == "cuda" and device == "cpu":
        raise ConfigError("device 'cuda' was asked for, but no process is given a GPU; say gpus=1")
    return device if asked == "auto" else asked


def _without_metrics(one: Contract) -> Contract:
    return one._replace(handler=_no_metrics) if one.path == METRICS else one


async def _no_metrics(call: Call) -> Response:
    from threefold.serve.errors import RequestError

    why = "this is one of several servers, and each counts for itself: ask whoever hosts them"
    raise RequestError(f"{METRICS} is not offered here: {why}", status=404)
