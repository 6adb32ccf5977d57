"""Processes that work: errors reach the caller, nothing hangs, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest
from tests.encoder import jobs
from tests.fakes import hear_interrupts

from threefold.encoder import wire
from threefold.encoder.workers import GRACE_S, Workers
from threefold.errors import InputError, NumericalError, WorkerError

#: Nothing here takes this long unless it hangs.
SOON_S = 30.0


@contextlib.contextmanager
def working(*settings: str, ahead: int = 1) -> Iterator[Workers]:
    workers = Workers(jobs.make, settings, list(settings), ahead=ahead)
    try:
        yield workers
    finally:
        workers.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with working("a", "b") as workers:
        yield workers


def alive(pid: int) -> bool:
    """Running, and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + SOON_S
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


# ---- tasks -----------------------------------------------------------------------------------------------


def test_tasks_are_done_by_both_processes(two: Workers) -> None:
    futures = [two.submit(("say", i)) for i in range(40)]
    answers = [future.result(SOON_S) for future in futures]
    assert [argument for _, _, argument in answers] == list(range(40))
    assert {(setting, pid) for setting, pid, _ in answers} <= set(zip("ab", two.pids, strict=True))
    assert os.getpid() not in two.pids


def test_who_is_free_takes_the_next(two: Workers) -> None:
    slow = two.submit(("sleep", 1.5))
    quick = [two.submit(("sleep", 0.01)) for _ in range(20)]
    others = {future.result(SOON_S) for future in quick}
    assert not slow.done()
    assert others == {"a", "b"} - {slow.result(SOON_S)}


def test_large_tasks_and_results_do_not_block_each_other() -> None:
    with working("a", "b", ahead=2) as workers:
        sent = [workers.submit(("size", b"x" * 5_000_000)) for _ in range(6)]
        back = [workers.submit(("bytes_of", 5_000_000)) for _ in range(6)]
        assert [future.result(SOON_S) for future in sent] == [5_000_000] * 6
        assert [len(future.result(SOON_S)) for future in back] == [5_000_000] * 6


def test_large_arrays_arrive_whole_and_may_be_kept(two: Workers) -> None:
    sizes = [5_000_000 + i for i in range(8)]
    kept = [future.result(SOON_S) for future in [two.submit(("array_of", size)) for size in sizes]]
    assert [len(array) for array in kept] == sizes
    for i, array in enumerate(kept):
        assert (array == 7).all()
        array[:] = i
    assert [int(array[0]) for array in kept] == list(range(8))


def test_what_waits_can_be_cancelled(two: Workers) -> None:
    busy = [two.submit(("sleep", 0.5)) for _ in range(2)]
    waiting = two.submit(("say", "never"))
    assert waiting.cancel()
    wait(busy, SOON_S)
    with pytest.raises(CancelledError):
        waiting.result(SOON_S)
    assert two.submit(("say", 1)).result(SOON_S)[2] == 1


# ---- errors ----------------------------------------------------------------------------------------------


def test_an_error_comes_with_the_traceback_of_its_process_and_the_rest_goes_on(two: Workers) -> None:
    good, bad = two.submit(("say", 1)), two.submit(("fail", "damaged"))
    with pytest.raises(NumericalError, match="damaged") as caught:
        bad.result(SOON_S)
    (note,) = caught.value.__notes__
    assert note.startswith(("in worker process a:", "in worker process b:"))
    assert "jobs.py" in note
    assert "raise NumericalError(words)" in note
    assert good.result(SOON_S)[2] == 1


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (("fail_strangely", "one"), WorkerError, "Unsendable: one and more"),
        (("unsendable", None), Exception, "pickle"),
        (("say", lambda: 0), Exception, "pickle"),
        (("absent", None), AttributeError, "absent"),
    ],
)
def test_what_cannot_be_sent_is_an_error_and_the_rest_goes_on(
    two: Workers, task: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        two.submit(task).result(SOON_S)
    assert two.submit(("say", 1)).result(SOON_S)[2] == 1


def test_an_error_at_the_start_is_that_of_the_caller() -> None:
    with pytest.raises(NumericalError, match="cannot start") as caught:
        Workers(jobs.make, ["a", "fails"], ["first", "second"])
    assert "in worker process second" in caught.value.__notes__[0]


def test_a_process_that_ends_at_the_start() -> None:
    with pytest.raises(WorkerError, match=r"worker process b ended with exit status 3.*__name__ == \"__main__\""):
        Workers(jobs.make, ["a", "ends"], ["a", "b"])


def test_a_killed_process_fails_everything_at_once() -> None:
    with working("a", "b") as workers:
        pids = workers.pids
        busy = [workers.submit(("sleep", 600)) for _ in pids]
        waiting = [workers.submit(("say", i)) for i in range(5)]
        os.kill(pids[1], signal.SIGKILL)  # only now: a pool that has ended takes no task
        for future in [*busy, *waiting]:
            with pytest.raises(WorkerError, match=r"worker process b was killed by SIGKILL .*out of memory"):
                future.result(SOON_S)
        assert gone(pids)
        with pytest.raises(WorkerError, match="was killed by SIGKILL"):
            workers.submit(("say", 1))


def test_a_process_that_dies_while_it_says_a_large_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an answer is none."""
    with working("a") as workers:
        read, (pid,) = wire._read, workers.pids

        def interrupted(pipe: int, size: int) -> Any:
            os.kill(pid, signal.SIGKILL)
            assert gone([pid])
            return read(pipe, size)

        monkeypatch.setattr(wire, "_read", interrupted)
        with pytest.raises(WorkerError, match="worker process a was killed by SIGKILL"):
            workers.submit(("array_of", 50_000_000)).result(SOON_S)


def test_a_process_that_is_killed_while_idle() -> None:
    with working("a", "b") as workers:
        os.kill(workers.pids[1], signal.SIGKILL)

        def work() -> None:
            for _ in range(1000):
                workers.submit(("sleep", 0.05)).result(SOON_S)

        with pytest.raises(WorkerError, match="worker process b was killed by SIGKILL"):
            work()


# ---- the end ---------------------------------------------------------------------------------------------


def test_closing_stops_the_processes_and_fails_what_is_unfinished() -> None:
    workers = Workers(jobs.make, ["a", "b"], ["a", "b"])
    pids = workers.pids
    unfinished = [workers.submit(("sleep", 600)) for _ in range(3)]
    while not unfinished[1].running():
        time.sleep(0.01)
    start = time.monotonic()
    workers.close()
    workers.close()
    assert time.monotonic() - start < SOON_S
    assert not any(map(alive, pids))
    for future in unfinished:
        with pytest.raises(InputError, match="closed before this was finished"):
            future.result(SOON_S)
    with pytest.raises(InputError, match="the pool is closed"):
        workers.submit(("say", 1))


def in_a_child(work: Callable[[], None]) -> int:
    """The process id of a forked child that does this, and ends with status 0 where it raises nothing."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(SOON_S))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_that_they_are_not_its_own(two: Workers) -> None:
    def work() -> None:
        with pytest.raises(InputError, match="belongs to the process that was forked"):
            two.submit(("say", 1))
        two.close()

    assert os.waitpid(in_a_child(work), 0)[1] == 0
    assert two.submit(("say", 1)).result(SOON_S)[2] == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_them_alive() -> None:
    workers = Workers(jobs.make, ["a", "b"], ["a", "b"])
    child = in_a_child(lambda: time.sleep(SOON_S))
    try:
        start = time.monotonic()
        workers.close()
        assert time.monotonic() - start < GRACE_S  # they read the end of their pipes
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


SCRIPT = """
import sys, time
from tests.encoder import jobs
from threefold.encoder.workers import Workers

if __name__ == "__main__":
    workers = Workers(jobs.make, ["a", "b"], ["a", "b"])
    print(*workers.pids, flush=True)
    {then}
"""


@contextlib.contextmanager
def script(tmp_path: Path, then: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Another process with two of its own, whose ids it has printed; a session by itself."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(then=then))
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=SOON_S)


def test_a_script_that_forgets_to_close_ends(tmp_path: Path) -> None:
    with script(tmp_path, 'print(workers.submit(("say", 1)).result()[2], file=sys.stderr)') as (process, pids):
        _, err = process.communicate(timeout=SOON_S)
        assert (process.returncode, err.strip()) == (0, "1")
        assert gone(pids)


def test_nobody_outlives_a_killed_parent(tmp_path: Path) -> None:
    with script(tmp_path, "time.sleep(600)") as (process, pids):
        assert all(map(alive, pids))
        process.kill()
        assert gone(pids)


def test_ctrl_c_ends_it_with_one_traceback(tmp_path: Path) -> None:
    then = 'futures = [workers.submit(("sleep", 600)) for _ in range(9)]; futures[8].result()'
    with script(tmp_path, then) as (process, pids):
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, err = process.communicate(timeout=SOON_S)
        assert process.returncode == -signal.SIGINT
        assert err.count("Traceback") == 1
        assert err.strip().endswith("KeyboardInterrupt")
        assert gone(pids)


def test_a_forked_child_that_exits_leaves_them_running(tmp_path: Path) -> None:
    then = """
    import os, warnings
    warnings.simplefilter("ignore")  # Python 3.12 and newer warn of forks beside threads
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        print(workers.submit(("say", 1)).result(30)[2], file=sys.stderr)
    """
    with script(tmp_path, then) as (process, pids):
        _, err = process.communicate(timeout=SOON_S)
        assert (process.returncode, err.strip()) == (0, "1")
        assert gone(pids)


def test_a_script_without_the_guard_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        "from tests.encoder import jobs\nfrom threefold.encoder.workers import Workers\n"
        'Workers(jobs.make, ["a"], ["a"])\n'
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 1
    assert 'below `if __name__ == "__main__":`' in done.stderr
