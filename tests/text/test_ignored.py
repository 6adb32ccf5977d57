from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from threefold.text.documents import Loading, Skipped, load_files
from threefold.types import Document

GIT = shutil.which("git")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(folder: Path, *, ignored: bool = False) -> list[str]:
    """Ids of the documents; what is left out with a minus."""
    found = []
    for item in load_files(folder, Loading(ignored=ignored)):
        if isinstance(item, Document):
            found.append(item.id)
        elif ".gitignore" in item.reason:
            found.append("-" + Path(item.path).relative_to(folder).as_posix())
    return found


FILES = {
    ".gitignore": "# made\nbuild/\n*.log\n!keep.log\n/top.md\n",
    "build/page.md": "a",
    "docs/build/page.md": "a",
    "docs/top.md": "a",
    "docs/x.log": "a",
    "docs/keep.log": "a",
    "docs/inner/.gitignore": "!x.log\nsecret.md\n",
    "docs/inner/x.log": "a",
    "docs/inner/secret.md": "a",
    "top.md": "a",
}


def test_what_is_left_out_and_said(tmp_path: Path) -> None:
    tree(tmp_path, FILES)
    assert read(tmp_path) == [
        "-build", "-docs/build", "-docs/inner/secret.md", "docs/inner/x.log", "docs/keep.log", "docs/top.md",
        "-docs/x.log", "-top.md",
    ]  # fmt: skip
    (said,) = [one for one in load_files(tmp_path) if isinstance(one, Skipped) and one.path.endswith("x.log")]
    assert (said.reason, said.empty) == ("a .gitignore leaves it out; --ignored reads it", False)


def test_all_of_it_on_request(tmp_path: Path) -> None:
    tree(tmp_path, FILES)
    assert sorted(read(tmp_path, ignored=True)) == sorted(name for name in FILES if not name.endswith(".gitignore"))


def test_the_repository_around_a_folder_counts(tmp_path: Path) -> None:
    tree(tmp_path, FILES)
    assert "x.log" in read(tmp_path / "docs")  # there is no repository
    tree(tmp_path, {".git/HEAD": "ref"})
    assert read(tmp_path / "docs") == ["-build", "-inner/secret.md", "inner/x.log", "keep.log", "top.md", "-x.log"]


def test_what_lies_between_the_repository_and_a_folder_counts(tmp_path: Path) -> None:
    tree(tmp_path, {".git/HEAD": "ref", ".gitignore": "*.log", "a/b/.gitignore": "!keep.log\nx.md"})
    tree(tmp_path, dict.fromkeys(("a/b/c/keep.log", "a/b/c/other.log", "a/b/c/x.md", "a/b/c/y.md"), "text"))
    assert read(tmp_path / "a" / "b" / "c") == ["keep.log", "-other.log", "-x.md", "y.md"]


def test_who_names_what_is_left_out_wants_it(tmp_path: Path) -> None:
    tree(tmp_path, {**FILES, ".git/HEAD": "ref"})
    assert read(tmp_path / "build") == ["page.md"]
    assert [item.id for item in load_files(tmp_path / "top.md") if isinstance(item, Document)] == ["top.md"]


def test_a_repository_of_its_own_does_not_hear_the_one_around_it(tmp_path: Path) -> None:
    tree(
        tmp_path, {".git/HEAD": "ref", ".gitignore": "*.md", "sub/.git": "gitdir: ../.git/modules/sub", "sub/a.md": "a"}
    )
    assert read(tmp_path / "sub") == ["a.md"]


@pytest.mark.parametrize("content", [b"!\n*.log\n", b"\xff\xfe", b"\xef\xbb\xbf*.log\r\n", b"*.log\r\n", b""])
def test_odd_files(tmp_path: Path, content: bytes) -> None:
    tree(tmp_path, {"a.log": "a"})
    (tmp_path / ".gitignore").write_bytes(content)
    assert read(tmp_path) == (["-a.log"] if b"log" in content else ["a.log"])


def test_a_gitignore_that_is_a_folder(tmp_path: Path) -> None:
    tree(tmp_path, {".gitignore/x": "a", "a.md": "a"})
    assert read(tmp_path) == ["a.md"]


WORDS = r"\!a a a/ /a b.md *.md !a.md !b/ **/a a/* a/b !/b.md ? [ab].md a/** #a a/**/b.md **/b/ !a/** b/*/"
PATTERNS = st.sampled_from(WORDS.split())
PLACES = ["a.md", "b.md", "a/a.md", "a/b/b.md", "b/a.md", "b/a/b.md", "b/b.md"]


@pytest.mark.skipif(GIT is None, reason="there is no git here")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(outer=st.lists(PATTERNS, max_size=4), inner=st.lists(PATTERNS, max_size=3))
def test_as_git_does(tmp_path_factory: pytest.TempPathFactory, outer: list[str], inner: list[str]) -> None:
    root = tree(tmp_path_factory.mktemp("repository"), dict.fromkeys(PLACES, "text"))
    tree(root, {".gitignore": "\n".join(outer), "b/.gitignore": "\n".join(inner)})
    git(root, "init", "-q")
    expected = git(root, "ls-files", "--others", "--exclude-standard").split()
    assert sorted(name for name in read(root) if name[0] != "-") == sorted(
        name for name in expected if not name.endswith(".gitignore")
    )


def git(root: Path, *command: str) -> str:
    """What Git says, whatever is set on this machine."""
    assert GIT is not None
    nothing = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "XDG_CONFIG_HOME": str(root)}
    environment = {**os.environ, **nothing}
    done = subprocess.run([GIT, *command], cwd=root, env=environment, capture_output=True, text=True, check=True)
    return done.stdout
