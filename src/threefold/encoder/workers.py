"""Processes that work for this one: each makes an object once, then does tasks on it as it becomes free.

One pipe per process and no lock that two processes share, so one that is killed cannot block the others. A thread
of this process hands the oldest task to the first process that is free. Three ends are told apart:

    a task fails      its future gets the exception, with the traceback of the process as a note; the rest goes on
    a process ends    every task fails at once with `WorkerError`, all processes are stopped
    this process ends the others read the end of their pipe and stop, whatever killed it

Knows nothing of texts and models.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, NamedTuple

from threefold.encoder.wire import receive, send, widen
from threefold.errors import InputError, WorkerError

#: Seconds that a process gets to end by itself before it is killed.
GRACE_S = 5.0

#: Makes the object of a process from its setting; called once in it, must be importable.
Make = Callable[[Any], Callable[[Any], Any]]


class _Answer(NamedTuple):
    """What a process says: the result of a task, or how it failed. Number 0 is its start."""

    number: int
    result: Any
    error: BaseException | None
    trace: str


@dataclass(slots=True)
class _Worker:
    name: str
    process: BaseProcess
    connection: Connection
    flying: dict[int, Future[Any]] = field(default_factory=dict)


class Workers:
    """A fixed number of processes.

    make      importable function: a setting -> the function that does tasks
    settings  one per process
    names     one per process, for messages
    ahead     tasks that a process holds at most: 2 hide the way of a result where a task takes milliseconds
    """

    def __init__(self, make: Make, settings: Sequence[Any], names: Sequence[str], *, ahead: int = 1) -> None:
        self._ahead = ahead
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Any]] = deque()
        self._numbers = 0
        self._ended: str | None = None
        self._closed = False
        self._why_closed = "the pool is closed; make a new one"
        self._told = False  # whether a byte is on its way to the thread
        self._ear, self._bell = multiprocessing.Pipe(duplex=False)
        self._workers: list[_Worker] = []
        try:
            with _interrupts_held():
                for setting, name in zip(settings, names, strict=True):
                    self._workers.append(_start(make, setting, name))
            self._await_start()
        except BaseException:
            self._stop(at_once=True)
            raise
        self._thread = threading.Thread(target=self._serve, name="threefold-workers", daemon=True)
        self._thread.start()
        _pools.add(self)

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of the settings."""
        return [worker.process.pid or 0 for worker in self._workers]

    def submit(self, task: Any) -> Future[Any]:
        """Do a task on the first process that is free. The future can be cancelled until it is handed out."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise InputError(self._why_closed)
            if self._ended is not None:
                raise WorkerError(self._ended)
            self._waiting.append((future, task))
            self._ring()
        return future

    def close(self) -> None:
        """Stop the processes. What is not finished fails; calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._ring()
        self._thread.join()
        busy = any(worker.flying for worker in self._workers)
        self._fail_all(InputError("the pool was closed before this was finished"))
        self._stop(at_once=busy)

    # ---- the thread ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._loop()
        except Exception as error:  # an answer that cannot be read: nobody may wait for it
            self._give_up(f"the pool failed and is stopped: {type(error).__name__}: {error}")

    def _loop(self) -> None:
        sources: dict[Any, _Worker] = {}
        for worker in self._workers:
            sources |= {worker.connection: worker, worker.process.sentinel: worker}
        while True:
            broken = self._hand_out()
            ready = [] if broken else wait([self._ear, *sources])
            if self._ear in ready:
                with self._lock:
                    self._ear.recv_bytes()
                    self._told = False
                if self._closed:
                    return
            for source in ready:
                if source in sources and not self._listen(sources[source]):
                    broken = sources[source]
                    break
            if broken:
                broken.process.join(GRACE_S)
                self._give_up(_obituary(broken))
                return

    def _hand_out(self) -> _Worker | None:
        """Give waiting tasks to those who are free; returns a process that cannot be reached any more."""
        while True:
            with self._lock:
                free = min(self._workers, key=lambda worker: len(worker.flying))
                if not self._waiting or len(free.flying) >= self._ahead or self._closed:
                    return None
                future, task = self._waiting.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._numbers += 1
                number = self._numbers
                free.flying[number] = future
            try:
                free.connection.send((number, task))
            except OSError:
                return free
            except Exception as error:  # the task cannot be pickled; nothing was sent
                free.flying.pop(number).set_exception(error)

    def _listen(self, worker: _Worker) -> bool:
        """Take what a process says; False when it is gone."""
        try:
            while worker.connection.poll():
                answer: _Answer = receive(worker.connection)
                future = worker.flying.pop(answer.number)
                if answer.error is None:
                    future.set_result(answer.result)
                else:
                    future.set_exception(_noted(answer, worker.name))
        except (EOFError, OSError):
            return False
        return worker.process.is_alive()

    def _give_up(self, why: str) -> None:
        with self._lock:
            self._ended = why
        for worker in self._workers:
            worker.process.kill()
        self._fail_all(WorkerError(why))

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            left = [future for future, _ in self._waiting if future.set_running_or_notify_cancel()]
            self._waiting.clear()
        for worker in self._workers:
            left += worker.flying.values()
            worker.flying.clear()
        for future in left:
            future.set_exception(error)

    def _ring(self) -> None:
        """Wake the thread; one byte at a time, so that it never blocks. Called with the lock."""
        if not self._told:
            self._told = True
            self._bell.send_bytes(b"!")

    # ---- start and end -------------------------------------------------------------------------------

    def _await_start(self) -> None:
        """Every process has made its object, or the first error that one of them had."""
        starting: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        while starting:
            for connection in wait(list(starting)):
                worker = starting.pop(connection)
                try:
                    answer: _Answer = receive(worker.connection)
                except (EOFError, OSError):
                    worker.process.join(GRACE_S)
                    raise WorkerError(
                        f"{_obituary(worker)} It had not started: a script must make its pool "
                        'below `if __name__ == "__main__":`'
                    ) from None
                if answer.error is not None:
                    raise _noted(answer, worker.name)

    def _left_to_parent(self) -> None:
        """In a forked child: it has no thread that hands out tasks, and open pipes would keep the processes alive."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._closed, self._why_closed = True, "the pool belongs to the process that was forked; make one in the child"
        ours: set[BaseProcess] = getattr(multiprocessing.process, "_children", set())
        for worker in self._workers:
            worker.connection.close()
            ours.discard(worker.process)  # multiprocessing would end them as soon as the child ends
        self._workers = []
        self._ear.close()
        self._bell.close()

    def _stop(self, *, at_once: bool) -> None:
        for worker in self._workers:
            worker.connection.close()  # an idle process reads the end of its pipe and ends
            if at_once:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(GRACE_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers = []
        self._ear.close()
        self._bell.close()


#: The pools of this process.
_pools: weakref.WeakSet[Workers] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """A forked child leaves the pools of its parent alone."""
    for workers in list(_pools):
        workers._left_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _start(make: Make, setting: Any, name: str) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads that it does not copy
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make, setting), name=f"threefold {name}", daemon=True)
    process.start()
    theirs.close()  # else its end would not be the end of the pipe
    return _Worker(name, process, ours)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C is for this process alone: the others inherit that it is blocked, from their first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows; there `_work` ignores it as soon as it runs
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obituary(worker: _Worker) -> str:
    code = worker.process.exitcode
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        why = " (the system may be out of memory)" if -code == signal.SIGKILL else ""
    else:
        how, why = f"ended with exit status {code}", ""
    return f"worker process {worker.name} {how}{why}; the pool is stopped. Make a new one to go on."


def _noted(answer: _Answer, name: str) -> BaseException:
    assert answer.error is not None
    answer.error.add_note(f"in worker process {name}:\n{answer.trace}")
    return answer.error


# ---- in the other process --------------------------------------------------------------------------------


def _work(connection: Connection, make: Make, setting: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    widen(connection)
    try:
        task_of = make(setting)
    except Exception as error:
        send(connection, _failed(0, error))
        return
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    send(connection, _Answer(0, None, None, ""))
    while (item := inbox.get()) is not None:
        number, task = item
        try:
            answer = _Answer(number, task_of(task), None, "")
        except Exception as error:
            answer = _failed(number, error)
        try:
            _say(connection, answer)
        except OSError:  # nobody listens any more
            return


def _receive(connection: Connection, inbox: SimpleQueue[Any]) -> None:
    """Read tasks while another one runs, so that whoever sends one never waits for it."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        inbox.put(None)


def _say(connection: Connection, answer: _Answer) -> None:
    try:
        send(connection, answer)
    except OSError:
        raise
    except Exception as error:  # the result cannot be pickled; nothing was sent
        send(connection, _failed(answer.number, error))


def _failed(number: int, error: Exception) -> _Answer:
    """The error itself where it can be sent, else its words."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = WorkerError(f"{type(error).__name__}: {error}")
    return _Answer(number, None, error, trace)
