"""The models of a server as its settings list them, ready to be loaded, measured and traced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from threefold.errors import ConfigError
from threefold.serve.catalog import Kind, Model, Service
from threefold.serve.cross import CrossJudge, PairEncoder
from threefold.serve.meters import Meters
from threefold.serve.models import Embedder, RowEncoder
from threefold.serve.queue import BatchReport
from threefold.serve.settings import ModelSettings, ServeConfig

if TYPE_CHECKING:
    from threefold.serve.traces import Traces

Load = Callable[[], RowEncoder]
LoadCross = Callable[[], PairEncoder]
#: How a further model is loaded: an encoder or a cross-encoder, as its settings say.
LoadMore = Callable[[ModelSettings], RowEncoder | PairEncoder]


class Maker:
    """Makes models; nothing is loaded yet."""

    def __init__(self, config: ServeConfig, meters: Meters, traces: Traces | None) -> None:
        self._config = config
        self._meters = meters
        self._traces = traces

    def encoder(self, load: Load, aliases: tuple[str, ...]) -> Model:
        """The encoder of those who name none: kept, and called as its card says."""
        model = self._kept("encoder", self._config.model)
        model.service, model.aliases = self._service(model, load, ""), aliases
        return model

    def reranker(self, load: LoadCross) -> Model:
        """The cross-encoder of those who name none: kept, and called as it calls itself."""
        model = self._kept("cross-encoder", self._config.reranker)
        model.service = self._service(model, load, "")
        return model

    def further(self, settings: ModelSettings, load_more: LoadMore | None) -> Model:
        """A model of its own name, loaded when it is first asked for unless it is to be kept."""
        if load_more is None:
            raise ConfigError(f"this server cannot load further models; got {settings.path!r}")
        load = cast("Load | LoadCross", partial(load_more, settings))
        name = settings.name or settings.path
        model = Model(name, settings.kind, lambda: self._service(model, load, name), settings.aliases, settings.preload)
        return model

    def _kept(self, kind: Kind, name: str | None) -> Model:
        def made() -> Service:
            assert model.service is not None
            return model.service

        model = Model(name or f"the {kind}", kind, made, kept=True)
        return model

    def _service(self, model: Model, load: Load | LoadCross, name: str) -> Service:
        config, observer = self._config, self._observer(model)
        if model.kind == "cross-encoder":
            return CrossJudge(cast(LoadCross, load), config.limits, name=name, observer=observer)
        most = config.max_input_tokens
        return Embedder(cast(Load, load), config.limits, name=name, max_tokens=most, observer=observer)

    def _observer(self, model: Model) -> Callable[[BatchReport], None]:
        count = self._meters.batches(lambda: model.name)
        if self._traces is None:
            return count
        trace = self._traces.batches(lambda: model.name)

        def both(report: BatchReport) -> None:
            count(report)
            trace(report)

        return both
