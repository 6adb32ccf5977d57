"""What the documents promise: every command is described, every option they name exists, every example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from threefold import Collection
from threefold.cli.main import app

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def options(command: str) -> set[str]:
    top = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    known = [parameter for one in [top, *getattr(top, "commands", {}).values()] for parameter in one.params]
    return {name for parameter in known for name in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section_in_the_guide(command: str) -> None:
    headings = re.findall(r"^## threefold (.*)$", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    assert command in {name.strip() for heading in headings for name in heading.split(",")}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_line_in_a_guide_uses_commands_and_options_that_exist(guide: Path) -> None:
    for block in [*blocks(guide, "bash"), *blocks(guide, "sh")]:
        for line in block.replace("\\\n", " ").splitlines():
            call = re.match(r"(?:\$ )?threefold (\w[\w-]*)(.*)$", line.split("  #")[0])
            if not call or call[1].startswith("-"):
                continue
            assert call[1] in COMMANDS, line
            unquoted = re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", call[2])
            used = set(re.findall(r"(?:^| )(--?[a-z][a-z-]*)(?=[ =]|$)", unquoted))
            assert used <= options(call[1]), line


@pytest.mark.parametrize("name", ["README.md", "docs/library.md", "docs/analysis.md"])
def test_the_python_examples_run(
    name: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "sparse.md").write_text("# Sparse\n\nThe sparse head is trained by self-distillation.\n")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), scope)
    papers = scope["papers"]
    assert isinstance(papers, Collection)
    papers.close()  # docs/library.md leaves it open for its later blocks
    assert "sparse" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(guide: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", guide.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (guide.parent / target).exists(), f"{guide.name} links to {target}"
