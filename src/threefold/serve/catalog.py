"""The models of a server, by name: kept, or loaded by the first request and unloaded when memory is short.

    unloaded ─► loading ─► ready ─► unloaded (idle, and its memory is needed)
                   │
                   ╰─► failed ─► loading (by a request, after a while)

One load at a time; requests for the same model wait for the same load. A model with requests in flight is never
unloaded, nor one that is kept. Belongs to the event loop; knows neither HTTP nor what a model computes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from threefold.errors import ConfigError, ThreefoldError, UnavailableError
from threefold.serve.cross import CrossJudge
from threefold.serve.memory import trim
from threefold.serve.models import Embedder

Service = Embedder | CrossJudge
Kind = Literal["encoder", "cross-encoder"]
State = Literal["unloaded", "loading", "ready", "failed"]

log = logging.getLogger(__name__)

#: Seconds before a model that could not be loaded is tried again: the first time, and at most (it doubles).
RETRY_S, RETRY_MOST_S = 5.0, 300.0
#: Seconds after which to ask again where all models are in use.
BUSY_S = 1.0
MB = 10**6


@dataclass(slots=True, eq=False)
class Model:
    """One model.

    make      builds its service, which loads when its engine starts
    kept      loaded at the start and never unloaded
    requests  in flight
    used_at   when the last one ended, by the clock of the catalog
    bytes     of its weights, when last loaded; 0: not known yet
    why       it could not be loaded
    again_at  when it may be tried again
    """

    name: str
    kind: Kind
    make: Callable[[], Service]
    aliases: tuple[str, ...] = ()
    kept: bool = False
    service: Service | None = None
    state: State = "unloaded"
    requests: int = 0
    used_at: float = 0.0
    bytes: int = 0
    why: str = ""
    failures: int = 0
    again_at: float = 0.0
    loading: asyncio.Task[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which it answers."""
        return (self.name, *self.aliases)

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded."""
        return self.state == "ready" and not self.kept and not self.requests


class Catalog:
    """All models of a server.

    most_bytes  of weights that may be loaded together; 0: no bound
    changed     told a model that was loaded or unloaded
    """

    def __init__(
        self,
        models: Iterable[Model],
        most_bytes: int = 0,
        *,
        changed: Callable[[Model], None] = lambda model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = tuple(models)
        self._most = most_bytes
        self._changed = changed
        self._clock = clock
        self._lock = asyncio.Lock()  # one load or unload at a time
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Model | None:
        """The model that answers under this name."""
        return next((model for model in self.models if name in model.names), None)

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(name for model in self.models for name in model.names)

    # ---- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what is kept. What cannot be loaded is an error, and so are two of one name, known before or by then."""
        self._check_names()
        for model in self.models:
            if model.kept:
                await self._start(model, service=model.service or model.make())
                self._check_names()
        if self._most and self._used() > self._most:
            raise ConfigError(
                f"the models that are kept have {self._used() // MB:,} MB of weights, more than the "
                f"{self._most // MB:,} MB of model_memory_mb"
            )

    def _check_names(self) -> None:
        names = self.names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two models have the name {twice[0]!r}; give one of them another name")

    async def stop(self, timeout_s: float) -> None:
        """Finish what is running, and unload everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        running = [model.service for model in self.models if model.service is not None]
        await asyncio.gather(*(service.engine.drain(timeout_s) for service in running))
        for service in running:
            service.close()

    def problem(self) -> str | None:
        """Why a model that is kept cannot answer; None when all can."""
        engines = (model.service.engine for model in self.models if model.kept and model.service is not None)
        return next((problem for engine in engines if (problem := engine.problem())), None)

    # ---- requests ------------------------------------------------------------------------------------------

    async def take(self, model: Model) -> Service:
        """The model, loaded, until it is given back."""
        model.requests += 1
        try:
            if model.state != "ready":
                await self._loaded(model)
        except BaseException:
            self.give(model)
            raise
        assert model.service is not None
        return model.service

    def give(self, model: Model) -> None:
        """A request is done with a model."""
        model.requests -= 1
        model.used_at = self._clock()
        if self._most and model.idle and self._used() > self._most:
            self._spawn(self._shrink())

    async def _loaded(self, model: Model) -> None:
        wait = model.again_at - self._clock()
        if model.state == "failed" and wait > 0:
            raise UnavailableError(f"{model.name} could not be loaded: {model.why}", max(wait, 1.0))
        if model.loading is None:
            model.loading = self._spawn(self._load(model))
        await asyncio.shield(model.loading)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waited for it has it; perhaps nobody does any more

    # ---- loading -------------------------------------------------------------------------------------------

    async def _load(self, model: Model) -> None:
        try:
            async with self._lock:
                await self._make_room(model)
                await self._try(model)
                await self._make_room()
                await asyncio.to_thread(trim)  # reading weights leaves as much behind as they take
        finally:
            model.loading = None

    async def _try(self, model: Model) -> None:
        model.state = "loading"
        began = time.perf_counter()
        try:
            await self._start(model, service=model.make())
            await self._refuse_too_large(model)
        except Exception as error:
            model.state = "failed"
            model.why = str(error) if isinstance(error, ThreefoldError) else f"it failed ({type(error).__name__})"
            wait = min(RETRY_S * 2**model.failures, RETRY_MOST_S)
            model.again_at, model.failures = self._clock() + wait, model.failures + 1
            log.error("%s could not be loaded: %r; it may be tried again in %.0f s", model.name, error, wait)
            self._changed(model)
            raise UnavailableError(f"{model.name} could not be loaded: {model.why}", wait) from error
        model.failures = 0
        log.info("%s is loaded after %.1f s", model.name, time.perf_counter() - began)

    async def _start(self, model: Model, service: Service) -> None:
        try:
            await service.engine.start()
        except BaseException:
            service.close()
            raise
        model.service, model.bytes, model.state = service, service.weight_bytes, "ready"
        model.name = service.name
        model.used_at = self._clock()
        self._changed(model)

    async def _refuse_too_large(self, model: Model) -> None:
        kept = sum(one.bytes for one in self.models if one.kept)
        if self._most and kept + model.bytes > self._most:
            await self._unload(model)
            raise UnavailableError(
                f"it has {model.bytes // MB:,} MB of weights; model_memory_mb leaves {(self._most - kept) // MB:,} MB"
            )

    def _used(self) -> int:
        return sum(model.bytes for model in self.models if model.state == "ready")

    async def _make_room(self, wanted: Model | None = None) -> None:
        """Unload idle models, the one first that was not used for longest, until there is room.

        How much a model needs is known once it was loaded; before its first load it is taken to need nothing.
        """
        needed = wanted.bytes if wanted is not None else 0
        while self._most and self._used() + needed > self._most:
            idle = [model for model in self.models if model.idle]
            if not idle:
                if needed:
                    raise UnavailableError("the models that are loaded are all in use, and fill the memory", BUSY_S)
                return
            await self._unload(min(idle, key=lambda model: model.used_at))

    async def _shrink(self) -> None:
        async with self._lock:
            await self._make_room()

    async def _unload(self, model: Model) -> None:
        service, model.service, model.state = model.service, None, "unloaded"
        assert service is not None
        self._changed(model)
        await service.engine.drain()
        service.close()
        del service
        await asyncio.to_thread(trim)
        log.info("%s is unloaded", model.name)
