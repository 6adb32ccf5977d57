"""The files of `deploy/` say what the server reads: its settings, its command line, its signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.serve.fakes import ServedEncoder, make_server, serving

from threefold import errors
from threefold.cli.main import main
from threefold.serve.load import PREFIX, load_config
from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SAMPLE = DEPLOY / "threefold.toml"


class Healthy(BaseHTTPRequestHandler):
    """Answers 200 to whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


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


def test_what_is_commented_out_is_where_the_unit_may_write() -> None:
    """The user of the server reads keys and writes locks: not below /etc, which is of root."""
    text = SAMPLE.read_text(encoding="utf-8")
    found = re.findall(r'^(?:# )?(?:keys_file|usage_file|collections) = "([^"]+)"', text, flags=re.MULTILINE)
    assert len(found) == 3
    assert {str(Path(one).parent) for one in found} == {"/var/lib/threefold"}


@pytest.mark.parametrize("file", ["threefold.service", "threefold.toml"])
def test_the_commands_in_comments_are_those_of_the_user_of_the_server(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = re.sub(r"\\\n#\s*", "", (DEPLOY / file).read_text(encoding="utf-8"))
    commands = [shlex.split(line) for line in re.findall(r"^# +(sudo .* keys .*)$", text, flags=re.MULTILINE)]
    assert [command[5] for command in commands] == ["create", "credit"]
    for command in commands:
        assert command[:4] == ["sudo", "-u", "threefold", "/opt/threefold/bin/threefold"]
        local = [word.replace("/var/lib/threefold", str(tmp_path)) for word in command[4:]]
        if command[5] == "credit":
            shown = json.loads(capsys.readouterr().out)
            local = [shown["id"] if word.startswith("key-") else word for word in local] + ["--make"]
        assert main([*local, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage_file"] == str(tmp_path / "usage.sqlite")


def test_the_unit_says_how_models_are_fetched() -> None:
    text = re.sub(r"\\\n#\s*", "", (DEPLOY / "threefold.service").read_text(encoding="utf-8"))
    found = re.search(r"^# +cd \S+ && (sudo .* -c .*)$", text, flags=re.MULTILINE)
    assert found
    command = shlex.split(found[1])
    assert environment_of(command[4:5])["HF_HOME"] == environment_of(unit()["Service"]["Environment"])["HF_HOME"]
    code = command[-1].replace("BAAI/bge-m3", "threefold-mini")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_headings_that_the_unit_names_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    (heading,) = re.findall(r'see "([^"]+)" in `threefold serve --help`', (DEPLOY / "threefold.service").read_text())
    assert main(["serve", "--help"]) == 0
    assert heading in capsys.readouterr().out


def test_the_unit_restarts_what_a_restart_mends() -> None:
    (given,) = unit()["Service"]["RestartPreventExitStatus"]
    stays = {int(status) for status in given.split()}
    wrong = (errors.ConfigError, errors.CheckpointError, errors.MissingExtraError, errors.OfflineError)
    assert stays == {kind.exit_code for kind in wrong}
    for kind in (errors.WorkerError, errors.ServeError, errors.StoreLockedError):
        assert kind.exit_code not in stays


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
    copied = dict(value.split() for name, value in steps if name == "COPY" and value.startswith("deploy/"))
    places = {place: str(ROOT / source) for source, place in copied.items()}
    for name, value in variables.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, places.get(value, value))
    assert main([*arguments, "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["host"] == "0.0.0.0"
    ports = [value for name, value in steps if name == "EXPOSE"]
    assert ports == [str(shown["port"])]
    assert {shown["usage_file"], shown["collections"]} == {"/data/usage.sqlite", "/data/collections"}
    assert variables["THREEFOLD_OFFLINE"] == "1"
    monkeypatch.setenv("THREEFOLD_SERVE_PORT", "9000")
    assert main([*arguments, "--show-config"]) == 0
    assert json.loads(capsys.readouterr().out)["port"] == 9000


def test_a_file_that_is_mounted_says_where_things_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variable of the image is stronger than the file, but where it listens, which the image says."""
    variables = environment_of([value for name, value in instructions() if name == "ENV"])
    settings = {name.removeprefix(PREFIX) for name in variables if name.startswith(PREFIX)}
    assert settings == {"CONFIG", "HOST", "PORT"}
    file = tmp_path / "threefold.toml"
    file.write_text('[serve]\ncollections = "/data/mine"\nusage_file = "/data/mine.sqlite"\n', encoding="utf-8")
    for name in settings - {"CONFIG"}:
        monkeypatch.setenv(PREFIX + name, variables[PREFIX + name])
    monkeypatch.setenv(PREFIX + "CONFIG", str(file))
    assert main(["serve", "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["collections"], shown["usage_file"]) == ("/data/mine", "/data/mine.sqlite")


def test_the_container_has_no_root_and_looks_at_its_health() -> None:
    steps = instructions()
    last = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    final = dict(steps[last:])
    assert final["USER"].split(":")[0] not in ("root", "0")
    assert final["VOLUME"] == "/data"
    assert final["STOPSIGNAL"] == "SIGTERM"
    program, script = json.loads(final["HEALTHCHECK"].partition("CMD ")[2])
    assert program == "python"
    assert ("COPY", f"deploy/health.py {script}") in steps


def check_health(**variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}  # not for the way to itself
    environment |= {PREFIX + name: value for name, value in variables.items()}
    command = [sys.executable, str(DEPLOY / "health.py")]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def test_the_health_check_asks_where_the_server_listens(served: ServedEncoder, tmp_path: Path) -> None:
    file = tmp_path / "threefold.toml"
    with serving(make_server(served)) as url:
        port = url.rpartition(":")[2]
        file.write_text(f"[serve]\nport = {port}\n", encoding="utf-8")
        assert check_health(PORT=port) == 0
        assert check_health(PORT="", CONFIG=str(file)) == 0
        assert check_health(PORT=port, TLS_CERT="cert.pem") != 0  # it asks by https
    assert check_health(PORT=port) != 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_the_health_check_takes_any_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=elsewhere"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = tmp_path / "threefold.toml"
        file.write_text('[serve]\ntls_cert = "cert.pem"\n', encoding="utf-8")
        port = str(server.server_address[1])
        assert check_health(PORT=port, TLS_CERT="cert.pem") == 0
        assert check_health(PORT=port, CONFIG=str(file)) == 0
        server.shutdown()


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
