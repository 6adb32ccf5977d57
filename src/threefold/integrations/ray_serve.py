"""`threefold serve` on Ray Serve: replicas of one application on the machines and GPUs of a cluster.

    from ray import serve
    from threefold.integrations.ray_serve import deployment
    from threefold.serve.hosted import hosted

    app = deployment(hosted("threefold.toml"), replicas=4, gpus=1)
    serve.run(app)  # or, in a shell: serve run module:app

What an application is and what it refuses is said by `threefold.serve.hosted`; here is what Ray has to know of it: when
it has started, whether it is well, how long it may take to end. `threefold.cli.ray_serve` has both, for `serve run`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar, Final, Literal, Protocol

from threefold.errors import InputError, MissingExtraError

#: Requests that Ray gives to a replica at once; its own 5 would leave batches empty. What is too much for a replica is
#: for `limits.queued_tokens` to say, with 429 and the time to come back; beyond this number they wait at Ray's proxy.
ONGOING: Final = 2_048
#: Seconds between two looks at a replica; Ray replaces it after three bad ones.
LOOK_S: Final = 5.0
#: Seconds between two looks at whether a replica that ends has answered everything.
DRAIN_LOOK_S: Final = 0.5
#: Seconds for a replica to stop its threads, beyond what requests get.
STOP_S: Final = 10.0
#: Our header that Ray's proxy writes too, with the same value.
REQUEST_ID: Final = b"x-request-id"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application(Protocol):
    """What a replica runs. `asgi` is an application of Starlette, so that Ray knows its routes."""

    @property
    def asgi(self) -> Any: ...

    def check(self) -> None:
        """An error while it cannot answer."""
        ...


class Hosted(Protocol):
    """What is sent to a replica, and becomes an application there."""

    @property
    def drain_s(self) -> int:
        """Seconds that running requests get when a replica ends."""
        ...

    def on(self, device: Literal["cpu", "cuda"]) -> Hosted:
        """The same on this device."""
        ...

    async def open(self, threads: int) -> Application:
        """The application, ready to answer."""
        ...


class Replica:
    """What runs in a process of Ray. It has started when its models are loaded; what hinders that is Ray's status.

    running  its application, where the function finds it that Ray asks for one: a process has one replica
    """

    running: ClassVar[Application]

    async def __init__(self, hosted: Hosted, threads: int) -> None:  # type: ignore[misc]  # Ray awaits it
        Replica.running = await hosted.open(threads)

    async def check_health(self) -> None:
        """Called by Ray."""
        Replica.running.check()


class OneId:
    """ASGI: leaves out our request id. Ray's proxy gives every request one that has none, and adds it to the answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() != REQUEST_ID]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, send_without)


def running() -> Any:
    """The application of this replica; called by Ray once it is there."""
    app = Replica.running.asgi
    app.add_middleware(OneId)
    return app


def deployment(
    hosted: Hosted,
    *,
    replicas: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    name: str = "threefold",
    **options: Any,
) -> Any:
    """An application for Ray's `serve.run`, or for `serve run module:app`.

    replicas    processes, each with models of its own
    cpus, gpus  what Ray sets aside for each; a replica computes on its GPU, else with as many threads as it has CPUs
    options     further ones of Ray's `serve.deployment`, such as autoscaling_config; they win
    """
    serve = serve_package()
    if replicas < 1 or cpus < 0 or gpus < 0:
        raise InputError(f"replicas must be at least 1, cpus and gpus at least 0; got {replicas}, {cpus:g}, {gpus:g}")
    settled = hosted.on("cuda" if gpus else "cpu")
    resources = {"num_cpus": cpus, "num_gpus": gpus} | options.pop("ray_actor_options", {})
    usual: dict[str, Any] = {
        "max_ongoing_requests": ONGOING,
        "health_check_period_s": LOOK_S,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOK_S,
        "graceful_shutdown_timeout_s": settled.drain_s + STOP_S,
    }
    if "autoscaling_config" not in options:  # Ray takes one of both
        usual["num_replicas"] = replicas
    made = serve.deployment(name=name, ray_actor_options=resources, **(usual | options))
    return made(serve.ingress(running)(Replica)).bind(settled, max(1, int(cpus)))


def serve_package() -> Any:
    """Ray Serve, or an error that names the extra."""
    try:
        from ray import serve
    except ImportError as error:  # also where Ray is there without what its server needs
        raise MissingExtraError("ray[serve]", "ray-serve", "serving on Ray") from error
    return serve
