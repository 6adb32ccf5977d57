"""The files of `deploy/` say what the server reads: its settings, its command line, its signals."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from tests.serve.fakes import ServedEncoder

from threefold.cli.main import main
from threefold.serve.load import PREFIX, load_config
from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SAMPLE = DEPLOY / "threefold.toml"


def unit() -> dict[str, dict[str, list[str]]]:
    """Sections of the unit file; a name may stand there more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / "threefold.service").read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(header[1], defaultdict(list))
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            section[name].append(value)
    return found


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Containerfile, continued lines joined."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(name, value.strip()) for name, _, value in pairs]


def environment_of(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for line in words for word in shlex.split(line))


def test_the_sample_is_a_configuration() -> None:
    config = load_config(SAMPLE, {}, {})
    assert config.model == "threefold-mini"
    assert config.limits.queued_tokens == 500_000
    assert config.prices["threefold-mini"].embed == 0.01


def test_what_is_commented_out_in_the_sample_is_one_as_well() -> None:
    text = re.sub(r"^# (?=[\w\[]+ =|\[\[)", "", SAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    config = ServeConfig.from_dict(tomllib.loads(text)["serve"], "serve")
    assert config.reranker
    assert config.keys_file
    assert config.tls_cert
    assert config.otlp_endpoint
    assert [one.kind for one in config.models] == ["encoder", "cross-encoder"]


def test_a_server_can_be_made_of_the_sample(served: ServedEncoder) -> None:
    assert Server(load_config(SAMPLE, {}, {}), lambda: served).config.collections == "/var/lib/threefold/collections"


def test_the_unit_starts_a_command_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    service = unit()["Service"]
    program, *arguments = shlex.split(service["ExecStart"][0])
    assert Path(program).name == "threefold"
    local = [str(SAMPLE) if word == "/etc/threefold/threefold.toml" else word for word in arguments]
    assert main([*local, "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["served_names"] == ["text-embedding-3-small"]
    assert int(service["TimeoutStopSec"][0]) > shown["drain_s"]  # the drain ends before systemd kills
    assert service["KillSignal"] == ["SIGTERM"]
    state = f"/var/lib/{service['StateDirectory'][0]}/"
    assert shown["collections"].startswith(state)
    assert shown["usage_file"].startswith(state)
    assert service["ProtectSystem"] == ["strict"]
    assert environment_of(service["Environment"])["THREEFOLD_OFFLINE"] == "1"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_unit() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(DEPLOY / "threefold.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Unknown key" not in done.stderr
    assert "Failed to parse" not in done.stderr


def test_the_container_runs_a_command_that_exists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = instructions()
    given = {name: value for name, value in steps if name in ("ENTRYPOINT", "CMD")}
    program, *arguments = json.loads(given["ENTRYPOINT"]) + json.loads(given["CMD"])
    assert program == "threefold"
    variables = environment_of([value for name, value in steps if name == "ENV"])
    for name, value in variables.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    assert main([*arguments, "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["host"] == "0.0.0.0"
    ports = [value for name, value in steps if name == "EXPOSE"]
    assert ports == [str(shown["port"])]
    assert {shown["usage_file"], shown["collections"]} == {"/data/usage.sqlite", "/data/collections"}
    assert variables["THREEFOLD_OFFLINE"] == "1"


def test_the_container_has_no_root_and_looks_at_its_health() -> None:
    steps = instructions()
    last = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    final = dict(steps[last:])
    assert final["USER"].split(":")[0] not in ("root", "0")
    assert final["VOLUME"] == "/data"
    assert "/health" in final["HEALTHCHECK"]
    assert final["STOPSIGNAL"] == "SIGTERM"
    command = json.loads(final["HEALTHCHECK"].partition("CMD ")[2])
    compile(command[2], "healthcheck", "exec")


def test_the_container_copies_what_is_there_and_pins_torch_within_the_range() -> None:
    steps = instructions()
    for name, value in steps:
        if name == "COPY" and not value.startswith("--from"):
            *sources, _ = value.split()
            assert all((ROOT / source).exists() for source in sources)
    pinned = next(value for name, value in steps if name == "ARG" and value.startswith("TORCH="))
    assert re.fullmatch(r"TORCH=2\.\d+\.\d+", pinned)
    installs = [value for name, value in steps if name == "RUN" and "pip install" in value]
    assert "torch==" in installs[0]
    extras = set(re.search(r"\.\[([\w,]+)\]", installs[1])[1].split(","))  # type: ignore[index]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras <= set(project["optional-dependencies"])
