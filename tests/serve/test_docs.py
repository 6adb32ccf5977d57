"""Every `curl` of docs/server.md runs against a server; its settings and routes are those that the guide names."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tests.serve.fakes import ServedEncoder, make_server, serving

from threefold import serve
from threefold.serve import errors
from threefold.serve.app import CONTRACTS
from threefold.serve.errors import TOO_LARGE
from threefold.serve.settings import ServeConfig

GUIDE = (Path(__file__).parents[2] / "docs/server.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_every_curl_of_the_guide(served: ServedEncoder, tmp_path: Path) -> None:
    config = ServeConfig(
        served_names=("threefold-mini",), collections=str(tmp_path), usage_file=str(tmp_path / "usage")
    )
    with serving(make_server(served, config)) as url:
        for block in blocks("bash"):
            script = block.replace("http://127.0.0.1:8000", url).replace("curl -sS", "curl -sS --fail-with-body")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
            assert '"error"' not in done.stdout


def test_the_settings_of_the_guide_are_settings() -> None:
    for block in blocks("toml"):
        assert ServeConfig.from_dict(tomllib.loads(block)["serve"], "serve").model == "BAAI/bge-m3"
    for name in re.findall(r"`limits\.(\w+)`", GUIDE):
        assert hasattr(ServeConfig().limits, name)


def test_every_route_is_in_the_guide() -> None:
    shared = {"/", "/embeddings", "/invocations", "/ping", "/predict", "/v1/score", "/v1/models/{id:path}"}
    for contract in CONTRACTS:
        path = contract.path.replace("{id:path}", "{id}")
        if contract.path in shared:
            continue
        tail = path.removeprefix("/collections/{name}")
        assert path in GUIDE or f"...{tail}" in GUIDE, f"{path} is not in docs/server.md"


def test_every_code_of_an_error_is_in_the_guide() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(serve.__path__[0]).glob("*.py"))
    codes = {TOO_LARGE, *re.findall(r'code="(\w+)"', sources), *(code for _, code in errors._OPENAI.values())}
    assert len(codes) > 10
    assert [code for code in sorted(codes) if f"`{code}`" not in GUIDE] == []
