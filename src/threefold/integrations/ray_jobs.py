"""A job of `threefold.bulk` on a cluster of Ray: one actor per GPU, or per few cores, each with an encoder of its own.

    rows -> parts, here -> the actor that is free -> its file, written by the actor where all machines see the folder

A part is one call of an actor, and its file is there when it is complete: whatever ends costs the parts under way. An
actor that ends is replaced, and its part is done again; a part that `ATTEMPTS` actors did not survive ends the job.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from threefold import __version__
from threefold.bulk import Order, Part, write_part
from threefold.errors import InputError, ThreefoldError, WorkerError
from threefold.integrations.ray import Opening, ray_package
from threefold.shards import Written
from threefold.text.protocol import ModelCard

#: Cores of an actor, unless a number of actors is given or a machine has fewer.
CORES: Final = 4
#: Actors that may end over one part, or one after the other while they open the model; then the job ends.
ATTEMPTS: Final = 3
#: Seconds without an actor after which the caller is told.
PATIENCE_S: Final = 20.0
#: Seconds to reach the head of a cluster.
CONNECT_S: Final = 5.0

#: Called with something that a person who waits should know.
Say = Callable[[str], None]


class Shape(NamedTuple):
    """What the actors are: how many, and what Ray sets aside for each."""

    actors: int
    cpus: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected for the block: `local` starts it on this machine, `auto` finds what runs here, or HOST:PORT.

    Where this process is connected already, that cluster is used and left as it is.
    """
    ray = ray_package()
    if ray.is_initialized():
        yield ray
        return
    _check_address(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}  # standard output is the caller's
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
        quiet["include_dashboard"] = False
    try:
        start(ray, address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise InputError(
            f"--ray {address}: no cluster of Ray can be used there: {first}. Does one run (`ray status`), and does it "
            "want a token (RAY_AUTH_MODE=token)?"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def start(ray: Any, address: str, **settings: Any) -> None:
    """`ray.init`, once more where a Ray of this machine did not come up: its head may hang before its first line."""
    try:
        _init(ray, address, **settings)
    except RuntimeError:
        if address != "local":
            raise
        ray.shutdown()
        _init(ray, address, **settings)


def _init(ray: Any, address: str, **settings: Any) -> None:
    """`ray.init`. Of a head that is late Ray says a RuntimeError, of a node a bare Exception, which is one here too."""
    try:
        ray.init(address=address, **settings)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise RuntimeError(str(error)) from error


def _check_address(address: str) -> None:
    if "://" in address:
        raise InputError(
            f"{address!r}: Ray Client is not supported. Run the command on a machine of the cluster with the address "
            "auto, or give HOST:PORT of its head"
        )
    if address == "local":
        return
    told = _remembered() if address == "auto" else address
    if not told:
        return
    host, _, port = told.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{told!r} is no address of Ray: give local, auto, or HOST:PORT such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()  # Ray would try for many minutes
    except (OSError, OverflowError) as error:
        raise InputError(f"{told}: nothing answers there ({error}); is it the head of a cluster of Ray?") from error


def _remembered() -> str:
    """Where `auto` leads: Ray's variable, else the file that `ray start` leaves, also of a cluster that is gone."""
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    return os.environ.get("RAY_ADDRESS") or (file.read_text().strip() if file.is_file() else "")


def shape(ray: Any, device: str, actors: int | None) -> Shape:
    """One actor per GPU of the cluster where it has GPUs, else one per `CORES` cores; or as many as are asked for."""
    return shape_on([node["Resources"] for node in ray.nodes() if node["Alive"]], device, actors)


def shape_on(machines: list[dict[str, float]], device: str, actors: int | None) -> Shape:
    """`shape`, on machines that have so much each, such as {"CPU": 16.0, "GPU": 2.0}."""
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {device!r}: Ray gives an actor its GPU; use auto, cpu or cuda")
    if device == "cuda" and not gpus:
        raise InputError("device 'cuda' was asked for, but Ray knows of no GPU in this cluster")
    if gpus and device != "cpu":
        return Shape(actors or gpus, 1, 1)
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    if actors is None:
        each = max(1, min([CORES, *(count for count in cores if count)]))
        return Shape(max(1, _fitting(cores, each)), each, 0)
    # The most that so many can have; where there are too few cores, some wait until the cluster grows.
    each = next((each for each in range(max(cores, default=1), 1, -1) if _fitting(cores, each) >= actors), 1)
    return Shape(actors, each, 0)


def _fitting(cores: list[int], each: int) -> int:
    return sum(count // each for count in cores)


class Failed(NamedTuple):
    """What an actor refused; as an exception it would come back inside a longer one of Ray's."""

    error: ThreefoldError


class Opened(NamedTuple):
    """An actor that can encode: its model, the version of this package, and where it runs."""

    card: ModelCard
    version: str
    machine: str
    pid: int


class Worker:
    """What runs in an actor."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    def open(self) -> Opened | Failed:
        """Open the encoder."""
        try:
            self._encoder = self._opening.encoder()
        except ThreefoldError as error:
            return Failed(error)
        return Opened(self._encoder.card, __version__, socket.gethostname(), os.getpid())

    def write(self, path: Path, part: Part, order: Order) -> Written | Failed:
        """Encode a part into its file."""
        try:
            return write_part(path, part, order, self._encoder)
        except ThreefoldError as error:
            return Failed(error)


class Actors:
    """Processes that encode parts. A context manager; they end with the block, whatever they are doing.

    say  called with something that a person who waits should know
    """

    def __init__(self, ray: Any, opening: Opening, wanted: Shape, say: Say) -> None:
        self._ray, self._say, self.shape = ray, say, wanted
        self._make = ray.remote(Worker).options(num_cpus=wanted.cpus, num_gpus=wanted.gpus, max_restarts=0)
        self._opening = opening
        self._card: ModelCard | None = None
        self._ends: Counter[int | None] = Counter()  # of actors, by the number of the part; None: while they opened
        self._told = False
        #: Where actors run or ran, in the order in which they opened the model.
        self.opened: list[Opened] = []
        self._actors: list[Any] = []
        self._free: list[Any] = []
        self._calls: dict[Any, tuple[Any, Part | None]] = {}  # under way: the actor, and the part unless it opens
        for _ in range(wanted.actors):
            self._start()

    @property
    def card(self) -> ModelCard:
        """What the model is; waits for the first actor."""
        while self._card is None:
            list(self._next())  # empty: no part is under way yet
        return self._card

    def write(self, parts: Iterable[Part], path: Callable[[int], Path], order: Order) -> Iterator[tuple[Part, Written]]:
        """Each part with its totals once its file is there; in the order in which they are finished."""
        stream = iter(parts)
        again: list[Part] = []  # whose actor ended
        ahead = next(stream, None)  # read while the actors work
        while ahead is not None or again or any(part is not None for _, part in self._calls.values()):
            while self._free and (again or ahead is not None):
                if again:
                    part = again.pop()
                else:
                    assert ahead is not None
                    part, ahead = ahead, None
                actor = self._free.pop()
                self._calls[actor.write.remote(path(part.number), part, order)] = actor, part
                ahead = ahead or next(stream, None)
            for part, written in self._next():
                if written is None:
                    again.append(part)
                else:
                    yield part, written

    def close(self) -> None:
        """End all actors."""
        while self._actors:
            self._ray.kill(self._actors.pop())
        self._free, self._calls = [], {}

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------

    def _start(self) -> None:
        actor = self._make.remote(self._opening)
        self._actors.append(actor)
        self._calls[actor.open.remote()] = actor, None

    def _next(self) -> Iterator[tuple[Part, Written | None]]:
        """Wait until a call ends. A part with its totals, or with None: its actor ended. Nothing: an actor opened."""
        ready, _ = self._ray.wait(list(self._calls), timeout=PATIENCE_S)
        if not ready:
            self._tell()
        for call in ready:
            actor, part = self._calls.pop(call)
            answer = self._answer(call)
            if isinstance(answer, Exception):
                self._replace(actor, part, answer)
            elif part is None:
                self._joined(actor, answer)
            else:
                self._free.append(actor)
            if part is not None:
                yield part, None if isinstance(answer, Exception) else answer

    def _answer(self, call: Any) -> Any:
        """What the actor said; an exception as a value: it ended. What it refused, or failed in, is raised."""
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause or error
            raise WorkerError(f"an actor of Ray failed: {type(cause).__name__}: {cause}") from error
        except self._ray.exceptions.RayError as error:
            return error
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def _joined(self, actor: Any, one: Opened) -> None:
        if one.version != __version__:
            raise InputError(
                f"{one.machine} has threefold {one.version}, this machine {__version__}; install the same everywhere"
            )
        self.opened.append(one)
        self._card = self._card or one.card
        if one.card != self._card:
            raise InputError(
                f"{one.machine} opened another model than {self.opened[0].machine}: {one.card}, not {self._card}. "
                "Give every machine the same files, and say --precision"
            )
        self._ends[None] = 0
        self._free.append(actor)

    def _replace(self, actor: Any, part: Part | None, error: Exception) -> None:
        number, doing = None, "opening the model"
        if part is not None:
            number, doing = part.number, f"encoding the texts {part.rows[0][0]!r} to {part.rows[-1][0]!r}"
        self._ends[number] += 1
        if self._ends[number] >= ATTEMPTS:
            why = " ".join(str(error).split())[:300]
            raise WorkerError(f"{ATTEMPTS} actors of Ray ended (killed, or out of memory?) while {doing}: {why}")
        self._actors.remove(actor)
        self._ray.kill(actor)  # it may only be out of reach
        self._say(f"an actor of Ray ended while {doing}; another one takes its place")
        self._start()

    def _tell(self) -> None:
        waiting = sum(part is None for _, part in self._calls.values())
        if waiting == self.shape.actors and not self._told:
            self._told = True
            needs = "a GPU" if self.shape.gpus else f"{self.shape.cpus} CPUs"
            self._say(f"waiting for the cluster: no actor runs yet; each needs {needs}. `ray status` says who has them")
