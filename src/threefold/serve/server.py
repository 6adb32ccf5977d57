"""What the routes share: the models, who may call, what is counted.

Every contract is a thin reading and writing of the same two calls: `encoder`, for representations of texts, and
`judge`, for scores of pairs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from threefold.errors import ConfigError, DeadlineError, InputError
from threefold.paths import expanded
from threefold.serve.access import key_of, reading_keys
from threefold.serve.accounts import Accounts
from threefold.serve.bridge import QueuedEncoder, QueuedReranker
from threefold.serve.catalog import MB, Catalog, Kind, Model, Service
from threefold.serve.cross import CrossJudge
from threefold.serve.encoding import Encoding, by_deadline, check_size, deadline_of
from threefold.serve.errors import RequestError
from threefold.serve.heads import HeadsJudge
from threefold.serve.judges import WHOLE, Cutting, Judge, Judgement, Pair
from threefold.serve.keys import SELF, Key, Keys, usage_file_of
from threefold.serve.ledger import UNIT, Work
from threefold.serve.library import Library
from threefold.serve.logs import log_request
from threefold.serve.making import Load, LoadCross, LoadMore, Maker
from threefold.serve.meters import Meters
from threefold.serve.models import Embedder
from threefold.serve.rates import Rates
from threefold.serve.schedule import Lane
from threefold.serve.settings import ServeConfig
from threefold.serve.threads import Threads

if TYPE_CHECKING:
    from threefold.serve.http import Call
    from threefold.serve.traces import Traces

#: Threads that search collections, that add to them, and that delete; more requests wait. What writes waits for
#: whoever writes to the same collection, so it must not take the threads of what reads.
SEARCHING, ADDING, CHANGING = 16, 8, 8


class Server:
    """An encoder, perhaps a cross-encoder, and further models by name, behind every route."""

    def __init__(
        self,
        config: ServeConfig,
        load: Load,
        load_cross: LoadCross | None = None,
        load_more: LoadMore | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.config = config
        self.meters = Meters()
        self.traces = traces
        maker = Maker(config, self.meters, traces)
        main = maker.encoder(load, config.served_names)
        self.embedder = cast(Embedder, main.service)
        self._main = [main]
        self.cross: CrossJudge | None = None
        if load_cross is not None:
            self._main.append(maker.reranker(load_cross))
            self.cross = cast(CrossJudge, self._main[1].service)
        self.scorer: Judge = self.cross or HeadsJudge(self.embedder)
        further = [maker.further(settings, load_more) for settings in config.models]
        self.catalog = Catalog([*self._main, *further], config.model_memory_mb * MB, changed=self.meters.watch)
        self.keys = Keys(Path(config.keys_file)) if config.keys_file else None
        self.rates = Rates()
        self.accounts: Accounts | None = None
        self.searching, self.adding = Threads("search", SEARCHING), Threads("add", ADDING)
        self.changing = Threads("change", CHANGING)
        self.parsing = Threads("parse", 1)  # a parser holds the interpreter: two would keep others waiting for longer
        self.library: Library | None = None
        self.created = int(time.time())
        self._running = False
        self.draining = False  # it was told to stop

    # ---- models ------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """The names under which the models answer."""
        return self.catalog.names()

    def model_of(self, name: str | None, kind: Kind | None = None) -> Model:
        """The model with this name, or one that is served to those who name none."""
        if name is None:
            return self._main[0]
        found = self.catalog.find(name)
        if found is None:
            served = ", ".join(map(repr, self.names()))
            raise RequestError(
                f"the model {name!r} does not exist here; served: {served}",
                status=404,
                param="model",
                code="model_not_found",
            )
        if kind and found.kind != kind:
            fitting = ", ".join(repr(model.name) for model in self.catalog.models if model.kind == kind)
            raise RequestError(f"{name} is a {found.kind}, which gives no vectors; served: {fitting}", param="model")
        return found

    async def _take(self, call: Call, model: Model) -> Service:
        """The model, loaded, for as long as the request takes."""
        if model.state == "ready":
            return await self._hold(call, model)
        deadline = deadline_of(call) or self.config.limits.deadline_s
        try:
            async with asyncio.timeout(deadline):
                return await call.wait_for(self._hold(call, model))
        except TimeoutError:
            raise DeadlineError(f"{model.name} is still loading after {deadline:g} s; ask again later") from None

    async def _hold(self, call: Call, model: Model) -> Service:
        """Noted in the same step: a request that ends just then could not give back what it never got."""
        service = await self.catalog.take(model)
        call.held.append(model)
        return service

    # ---- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load and warm up every model that is kept. A second call does nothing."""
        if self._running:
            return
        self._running = True
        self.accounts = self._open_accounts()
        await self.catalog.start()
        self._check_prices()
        if self.config.collections:
            self.library = self._open_library(expanded(self.config.collections))

    def _open_accounts(self) -> Accounts | None:
        config = self.config
        if not config.usage_file and not config.keys_file:
            return None
        path = Path(config.usage_file) if config.usage_file else usage_file_of(Path(config.keys_file))
        accounts = Accounts(expanded(path), config.prices, currency=config.currency)
        accounts.start()
        return accounts

    def _check_prices(self) -> None:
        known = [model.name for model in self.catalog.models]
        for name in self.config.prices:
            if name not in known:
                raise ConfigError(f"prices.{name}: no such model; served are {', '.join(known)}")

    def _open_library(self, root: Path) -> Library:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{root} cannot be a folder of collections: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        reranker = QueuedReranker(self.cross, loop) if self.cross else None
        return Library(root, QueuedEncoder(self.embedder, loop), reranker)

    async def stop(self) -> None:
        """Finish what is running, then stop."""
        await self.catalog.stop(self.config.drain_s)
        for threads in (self.searching, self.adding, self.changing, self.parsing):
            threads.close()
        library, self.library = self.library, None  # what still runs must not open a collection again
        if library is not None:
            await asyncio.to_thread(library.close)
        if self.accounts is not None:
            await asyncio.to_thread(self.accounts.close)
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)

    def problem(self) -> str | None:
        """Why the server is not ready; None when it is."""
        return self.catalog.problem()

    def lost(self) -> str | None:
        """Why the device of a model will never work again in this process; None while it does."""
        services = [model.service for model in self.catalog.models if model.service is not None]
        return next((why for service in services if (why := service.engine.lost) is not None), None)

    # ---- who and what ------------------------------------------------------------------------------------

    def authorize(self, call: Call, scope: str) -> None:
        """Refuse who may not call. Without a file of keys everybody may."""
        if self.keys is None:
            return
        key = key_of(call, self.keys, scope)
        if scope != SELF:
            self.rates.check(key)
            self._check_account(key)

    def authorize_again(self, call: Call, scope: str) -> None:
        """Refuse to go on with a request that may have no end, once its key was revoked or has used up its credit,
        day or month. What it may use per minute is waited for before the next request.
        """
        if self.keys is not None:
            self._check_account(key_of(call, self.keys, scope))

    def _check_account(self, key: Key) -> None:
        if self.accounts is not None:
            self.accounts.check(key)

    def known_keys(self) -> tuple[Key, ...]:
        """Every key, oldest first; none without a file of keys."""
        with reading_keys():
            return self.keys.all() if self.keys is not None else ()

    def begun(self, call: Call) -> None:
        """A request is there."""
        if self.traces is not None:
            call.span = self.traces.begin(call)

    def released(self, call: Call) -> None:
        """A request needs its models no longer."""
        while call.held:
            self.catalog.give(call.held.pop())

    def finished(self, call: Call, status: int) -> None:
        """Count, trace and log one request."""
        seconds = time.perf_counter() - call.began
        self.meters.request(call.route, status, seconds)
        if status < 300:
            for (model, kind), tokens in call.used().items():
                self.charge(call, model, tokens, kind)
        who = {"id": call.id} | ({"key": call.key.id} if call.key else {})
        facts = {"method": call.request.method, "route": call.route, "status": status, "ms": round(1000 * seconds, 1)}
        log_request(facts | who | call.notes)
        if call.span is not None:
            call.span.end(status, who | call.notes)

    def charge(self, call: Call, model: str, tokens: int, kind: Work = "embed", *, requests: int = 1) -> None:
        """Count the tokens that a request has used."""
        key = call.key.id if call.key else ""
        self.meters.tokens(model, key, tokens)
        if call.key is not None:
            self.rates.charge(call.key, tokens)
        if self.accounts is not None:
            picos = self.accounts.use(key, model, call.route, kind, tokens, requests=requests)
            if picos:
                self.meters.cost(model, key, picos / UNIT)

    def rate_headers(self, call: Call) -> dict[str, str]:
        """What a key with a limit is told in every answer."""
        left = self.rates.left(call.key) if call.key is not None else None
        if call.key is None or left is None:
            return {}
        return {
            "x-ratelimit-limit-tokens": str(call.key.tokens_per_minute),
            "x-ratelimit-remaining-tokens": str(max(left, 0)),
        }

    # ---- the two calls -----------------------------------------------------------------------------------

    async def encoder(self, call: Call, name: str | None = None) -> Encoding:
        """An encoder for this request."""
        return Encoding(call, cast(Embedder, await self._take(call, self.model_of(name, "encoder"))))

    async def judge(
        self,
        call: Call,
        pairs: Sequence[Pair],
        cutting: Cutting = WHOLE,
        *,
        model: str | None = None,
        lane: Lane | None = None,
    ) -> Judgement:
        """Scores of pairs of texts, within the limits of a request."""
        scorer = await self._scorer(call, model)
        async with by_deadline(call) as deadline:  # of all of it; the queue has it too, to refuse what would be late
            work = scorer.judge(pairs, cutting=cutting, check=partial(check_size, call), lane=lane, deadline_s=deadline)
            judgement = await call.wait_for(work)
        call.use(scorer.name, "rerank", judgement.tokens, texts=len(pairs))
        call.trace(judgement.tokenize_s, judgement.queue_s, judgement.run_s)
        return judgement

    async def _scorer(self, call: Call, name: str | None) -> Judge:
        """Who judges: a further model that is named, else the reranker, else the heads of the encoder."""
        model = self.model_of(name)
        if model in self._main:
            return self.scorer
        service = await self._take(call, model)
        return HeadsJudge(service) if isinstance(service, Embedder) else service
