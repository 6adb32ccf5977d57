"""Encoding on a real Ray of this machine, two cores of it; the model is tiny and random."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.cli.test_cli import run, run_json
from tests.encoder.checkpoints import bge_m3
from tests.fakes import hear_interrupts
from tests.integrations.local_ray import local_ray

from threefold.bulk import Job, Order
from threefold.encoder.encoder import Encoder
from threefold.errors import InputError, MissingExtraError, WorkerError
from threefold.integrations import ray_jobs
from threefold.integrations.ray import Opening, RayEncoder
from threefold.integrations.ray_jobs import Actors, Opened, Shape, connected, shape, shape_on, start
from threefold.shards import read_parquet, write_parquet

LINES = [f"The quick brown fox number {i} jumps over the lazy dog." for i in range(50)]
ROWS = [(str(i), line) for i, line in enumerate(LINES, start=1)]
ORDER = Order(texts=10)
needs_ray = pytest.mark.peers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bge_m3(tmp_path_factory.mktemp("ray") / "model")


@pytest.fixture(scope="module")
def ray() -> Any:
    """A cluster of one machine that this process is connected to."""
    return local_ray()


@pytest.fixture
def use(model: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of texts, the tiny model, an empty home."""
    monkeypatch.setenv("THREEFOLD_MODEL", str(model))
    monkeypatch.setenv("THREEFOLD_PRECISION", "float32")
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES))
    return path


class Head:
    """Ray, as far as starting it goes; the first `failures` times its head does not come up."""

    def __init__(self, failures: int, kind: type[Exception] = RuntimeError) -> None:
        self.failures, self.kind, self.said = failures, kind, list[str]()

    def init(self, address: str, num_cpus: int) -> None:
        self.said.append(f"init {address} {num_cpus}")
        if len(self.said) // 2 < self.failures:
            raise self.kind("Timed out waiting for file gcs_server_port")

    def shutdown(self) -> None:
        self.said.append("shutdown")


@pytest.mark.parametrize("kind", [RuntimeError, Exception])
def test_a_ray_of_this_machine_that_does_not_come_up_is_started_once_more(kind: type[Exception]) -> None:
    head = Head(1, kind)
    start(head, "local", num_cpus=2)
    assert head.said == ["init local 2", "shutdown", "init local 2"]
    head = Head(1, ValueError)
    with pytest.raises(ValueError, match="Timed out"):
        start(head, "local", num_cpus=2)
    assert head.said == ["init local 2"]
    for address, calls in (("local", 3), ("10.0.0.1:6379", 1)):
        head = Head(failures=9)
        with pytest.raises(RuntimeError, match="Timed out"):
            start(head, address, num_cpus=2)
        assert len(head.said) == calls


@pytest.mark.parametrize("kind", [RuntimeError, Exception])
def test_one_that_never_comes_up_is_an_error_of_ours(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(9, kind)
    monkeypatch.setattr(head, "init", lambda **settings: Head.init(head, settings["address"], 2))
    monkeypatch.setattr(head, "is_initialized", lambda: False, raising=False)
    monkeypatch.setattr(ray_jobs, "ray_package", lambda: head)
    with pytest.raises(InputError, match="no cluster of Ray can be used there: Timed out"), connected("local"):
        pass
    assert len(head.said) == 3


def address(ray: Any) -> str:
    return str(ray.get_runtime_context().gcs_address)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def check_same(one: Path, other: Path) -> None:
    assert [file.name for file in parts(one)] == [file.name for file in parts(other)]
    for a, b in zip(parts(one), parts(other), strict=True):
        (ids, texts, x), (other_ids, other_texts, y) = read_parquet(a), read_parquet(b)
        assert (ids, texts, x.tokens.tolist()) == (other_ids, other_texts, y.tokens.tolist())
        assert x.dense is not None and x.sparse is not None and x.multi is not None  # noqa: PT018
        assert y.dense is not None and y.sparse is not None and y.multi is not None  # noqa: PT018
        np.testing.assert_allclose(x.dense, y.dense, atol=2e-5)
        np.testing.assert_allclose(x.multi.rows, y.multi.rows, atol=2e-3)  # float16
        np.testing.assert_array_equal(x.sparse.indices, y.sparse.indices)
        np.testing.assert_allclose(x.sparse.values, y.sparse.values, atol=2e-5)


# ---- the command ---------------------------------------------------------------------------------------


@needs_ray
def test_with_ray_and_without_are_the_same_job(
    ray: Any, use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run_json(capsys, "encode", use, "-o", here, "--shard", "10")
    done = run_json(capsys, "encode", use, "-o", there, "--shard", "10", "--ray", "local", "--devices", "2")
    assert (done["files"], done["before"], done["texts"], done["precision"]) == (5, 0, 50, "float32")
    check_same(here, there)
    assert (here / "_job" / "job.json").read_text() == (there / "_job" / "job.json").read_text()
    for folder, more in ((here, ["--ray", "local"]), (there, [])):  # what one began, the other one finishes
        for place in (3, 1):
            parts(folder)[place].unlink()
        kept = {file: file.stat().st_mtime_ns for file in parts(folder)}
        assert run_json(capsys, "encode", use, "-o", folder, *more)["before"] == 30
        assert {file: file.stat().st_mtime_ns for file in kept} == kept
    check_same(here, there)


@needs_ray
def test_chunks_of_documents(ray: Any, use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are cut here and encoded there, and indexed without encoding."""
    cut = ["--max-tokens", "40"]
    (tmp_path / "docs").mkdir()
    for i in range(3):
        (tmp_path / "docs" / f"{i}.txt").write_text(use.read_text().replace("fox", f"fox {i}"))
    folder = tmp_path / "vectors"
    done = run_json(
        capsys, "encode", tmp_path / "docs", "--chunks", *cut, "-o", folder, "--shard", "20", "--ray", "local"
    )
    kept = run_json(capsys, "index", tmp_path / "docs", "--into", "kept", "--vectors", folder, *cut)
    assert kept["precomputed"] == kept["chunks"] == done["texts"] > 20


@needs_ray
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--truncate", "none", "--max-tokens", "10"], 2, "the text with the id '1' has 38 tokens, the limit is 10"),
        (["--model", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["--outputs", "dense,abacus"], 2, "abacus"),
        (["--devices", "cuda:0"], 2, "with --ray it is the number of actors"),
        (["--device", "cuda"], 2, "Ray knows of no GPU"),
        (["--device", "mps"], 2, "Ray gives an actor its GPU"),
    ],
)
def test_what_an_actor_refuses_reaches_the_caller(
    ray: Any, use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    got, out, err = run(capsys, "encode", use, "-o", tmp_path / "many", "--ray", "local", *arguments)
    assert (got, out) == (code, ""), err
    assert said in " ".join(err.split())
    assert not list((tmp_path / "many").glob("*.parquet"))


@needs_ray
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nowhere", "is no address of Ray"),
        ("127.0.0.1:1", "nothing answers there"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
        ("auto", "127.0.0.1:2: nothing answers there"),
    ],
)
def test_bad_addresses(use: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, said: str) -> None:
    """In a process of their own: this one is connected."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:2\n")  # what a cluster that was killed leaves
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    process = encode(use, tmp_path / "many", where)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said in " ".join(err.split())
    assert not (tmp_path / "many").exists()


# ---- what ends -----------------------------------------------------------------------------------------


def encode(file: Path, folder: Path, where: str, *arguments: str) -> subprocess.Popen[str]:
    command = ["encode", str(file), "-o", str(folder), "--shard", "20", "--ray", where, *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "threefold", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def wait_for(what: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what()


@needs_ray
def test_a_killed_job_is_resumed_and_ctrl_c_is_one_line(
    ray: Any, use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use.write_text("\n".join(LINES * 40))  # 100 files
    folder = tmp_path / "many"
    killed = encode(use, folder, address(ray))
    wait_for(lambda: len(parts(folder)) >= 3 or killed.poll() is not None)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 3 <= len(parts(folder)) < 100
    interrupted = encode(use, folder, address(ray))
    wait_for(lambda: len(parts(folder)) >= 30 or interrupted.poll() is not None)
    os.killpg(interrupted.pid, signal.SIGINT)
    out, err = interrupted.communicate(timeout=60)
    assert (interrupted.returncode, out) == (130, "")
    assert err.strip() == "error: interrupted; what was finished before is kept"
    before = len(parts(folder))
    assert 30 <= before < 100
    done = run_json(capsys, "encode", use, "-o", folder, "--ray", "local")
    assert (done["files"], done["texts"]) == (100, 2_000)
    assert done["before"] >= 20 * before  # an actor may have finished one more while it was ended
    assert not list(folder.glob(".*"))
    run_json(capsys, "encode", use, "-o", tmp_path / "here", "--shard", "20")
    check_same(folder, tmp_path / "here")


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_cluster_of_its_own_says_nothing_and_leaves_nobody_behind(
    use: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREEFOLD_OWN_CLUSTER", "1")
    process = encode(use, tmp_path / "many", "local", "--json")
    wait_for(lambda: processes_of("THREEFOLD_OWN_CLUSTER"))
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["texts"] == 50
    wait_for(lambda: not processes_of("THREEFOLD_OWN_CLUSTER"))


def processes_of(mark: str) -> list[int]:
    """Processes, but this one, that have a variable of this name: those of Ray have sessions of their own."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{mark}=".encode() in file.read_bytes() and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
    return found


@needs_ray
def test_an_actor_that_is_killed_is_replaced(ray: Any, model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with Actors(ray, Opening(str(model), precision="float32"), Shape(1, 1, 0), said.append) as actors:
        done = []
        with Job(tmp_path / "out", ORDER, actors.card) as job:
            for part, written in actors.write(job.missing(ROWS), job.path, ORDER):
                job.add(part, written)
                done.append(part.number)
                if len(done) == 2:
                    os.kill(actors.opened[0].pid, signal.SIGKILL)
            job.finish()
        assert sorted(done) == [0, 1, 2, 3, 4]
        assert len({one.pid for one in actors.opened}) == 2
    assert ["another one takes its place" in line for line in said] == [True]


@needs_ray
def test_actors_that_end_again_and_again_end_the_job(ray: Any, model: Path, tmp_path: Path) -> None:
    """As they would over a text for which there is not enough memory."""
    opening = Opening(str(model), precision="float32")
    with Actors(ray, opening, Shape(1, 1, 0), lambda _: None) as actors, Job(tmp_path, ORDER, actors.card) as job:
        over = threading.Event()
        killer = threading.Thread(target=kill_all, args=(actors.opened, over))
        killer.start()
        try:
            with pytest.raises(WorkerError, match=r"3 actors of Ray ended .* while encoding the texts '1' to '10'"):
                list(actors.write(job.missing([(id, text * 400) for id, text in ROWS]), job.path, ORDER))
        finally:
            over.set()
            killer.join()


def kill_all(opened: list[Opened], over: threading.Event) -> None:
    killed = 0
    while not over.wait(0.002):
        for one in opened[killed:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
            killed += 1


# ---- Ray Data ------------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning")  # Ray's own defaults
def test_ray_data_writes_what_we_write(ray: Any, model: Path, tmp_path: Path) -> None:
    rows = pa.table({"id": [id for id, _ in ROWS], "text": LINES, "year": list(range(50))})
    encoded = ray.data.from_arrow(rows).map_batches(
        RayEncoder,
        fn_constructor_kwargs={"model": str(model), "precision": "float32"},
        batch_size=20,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    table = pa.concat_tables(ray.get(encoded.to_arrow_refs()))
    assert table["year"].to_pylist() == list(range(50))
    encoder = Encoder(model, precision="float32")
    write_parquet(tmp_path / "ours.parquet", ROWS, encoder)
    ids, texts, ours = read_parquet(tmp_path / "ours.parquet")
    pa.parquet.write_table(table, tmp_path / "theirs.parquet")
    their_ids, their_texts, theirs = read_parquet(tmp_path / "theirs.parquet")
    assert (ids, texts, ours.tokens.tolist()) == (their_ids, their_texts, theirs.tokens.tolist())
    assert ours.dense is not None
    assert theirs.dense is not None
    np.testing.assert_allclose(theirs.dense, ours.dense, atol=2e-5)


@needs_ray
def test_every_kind_of_batch(model: Path) -> None:
    encoder = RayEncoder(str(model), precision="float32", outputs=("dense",))
    table = pa.table({"text": LINES[:3], "year": [1, 2, 3]})
    arrays = {name: table[name].to_numpy() for name in table.column_names}
    for batch in (table, table.to_pandas(), arrays):
        found = encoder(batch)
        assert found.column_names == ["text", "year", "dense", "tokens", "truncated"]
        assert found["year"].to_pylist() == [1, 2, 3]
        assert found.schema.field("dense").type == pa.list_(pa.float32(), encoder.card.dense_dim)
    assert len(encoder(table.slice(0, 0))) == 0


@needs_ray
@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (
            {"id": ["a", "b"], "text": ["fox", None]},
            "the row with the id 'b' has nothing in the column 'text', not text",
        ),
        ({"text": [1]}, "row 0 of a batch has int in the column 'text', not text"),
        ({"id": ["a", "b"], "text": ["fox", "fox " * 99]}, "the text with the id 'b' has .* the limit is 64"),
        ({"body": ["fox"]}, "no column 'text'; there are body"),
        ({"text": ["fox"], "tokens": [1]}, "have a column 'tokens' already"),
    ],
)
def test_bad_rows_are_named(model: Path, batch: dict[str, Any], said: str) -> None:
    encoder = RayEncoder(str(model), precision="float32", max_tokens=64, truncate="none")
    with pytest.raises(InputError, match=said):
        encoder(pa.table(batch))
    with pytest.raises(InputError, match='has 2 dimensions; pass batch_format="pyarrow"'):
        encoder({"text": np.array(["fox"]), "image": np.zeros((1, 2))})


# ---- without Ray ---------------------------------------------------------------------------------------


def test_without_the_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "threefold\[ray\]"'):
        RayEncoder(str(model))
    with pytest.raises(MissingExtraError, match=r'pip install "threefold\[ray\]"'), connected("local"):
        pass


def test_what_ray_says_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("There is no token in the environment variable.\nMore of it.")

    monkeypatch.setattr(ray_jobs, "ray_package", lambda: SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setattr(ray_jobs, "start", refuse)
    words = r"used there: There is no token in the environment variable\. Does one run"
    with pytest.raises(InputError, match=words), connected("local"):
        pass


@pytest.mark.parametrize(
    ("cores", "gpus", "device", "actors", "expected"),
    [
        ([2], [0], "auto", None, Shape(1, 2, 0)),
        ([2], [0], "auto", 2, Shape(2, 1, 0)),
        ([2], [0], "auto", 5, Shape(5, 1, 0)),  # some wait
        ([16, 16], [0, 0], "auto", None, Shape(8, 4, 0)),
        ([16, 6], [0, 0], "auto", None, Shape(5, 4, 0)),
        ([16, 16], [0, 0], "auto", 3, Shape(3, 8, 0)),
        ([0, 32], [0, 0], "cpu", 1, Shape(1, 32, 0)),  # a head that does no work
        ([32, 32], [4, 2], "auto", None, Shape(6, 1, 1)),
        ([32, 32], [4, 2], "cuda", 2, Shape(2, 1, 1)),
        ([8, 8], [4, 2], "cpu", None, Shape(4, 4, 0)),
    ],
)
def test_how_many_actors(cores: list[int], gpus: list[int], device: str, actors: int | None, expected: Shape) -> None:
    cluster = [{"CPU": float(c), "GPU": float(g)} for c, g in zip(cores, gpus, strict=True)]
    assert shape_on(cluster, device, actors) == expected


@needs_ray
def test_the_actors_of_a_cluster(ray: Any) -> None:
    assert shape(ray, "auto", None) == Shape(1, 2, 0)
