"""`threefold ask` and `search --quote`, on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.chats import chat_model, end, piece

from threefold.cli.main import main

BEES = (
    "# Bees\n\nHoney bees dance to tell where flowers are. A worker lives six weeks in summer. Queens live for years."
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def indexed(home: Path) -> Path:
    texts = home / "texts"
    texts.mkdir()
    (texts / "bees.md").write_text(BEES)
    (texts / "tower.md").write_text("# Eiffel Tower\n\nIt was built in 1889. It is 330 metres tall.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THREEFOLD_HOME", str(home))
        assert main(["index", str(texts), "--into", "papers"]) == 0
    return home


@pytest.fixture(autouse=True)
def at_home(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_HOME", str(indexed))


NOBODY = '{"language": "qq"}'
TALL = ("search", "how tall is the Eiffel Tower?", "--in", "papers", "--quote", "-k", "1")
Told = tuple[int, str, str]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Told:
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, " ".join(said.err.split())


def test_the_answer_and_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_model(piece("They dance"), piece(" [1].\x1b"), *end()) as endpoint:
        code, out, err = run(capsys, "ask", "how do bees talk?", "--in", "papers", "--llm", endpoint.url)
    assert (code, err) == (0, "")
    assert out == "They dance [1].\ufffd\n\n[1] Bees  bees.md:0-" + str(len(BEES)) + "\n"
    assert endpoint.asked[0]["model"] == "some-model"


def test_as_json_and_by_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_model(piece("They dance [1] [5]."), *end("length")) as endpoint:
        monkeypatch.setenv("THREEFOLD_LLM", endpoint.url)
        monkeypatch.setenv("THREEFOLD_LLM_MODEL", "bees")
        monkeypatch.setenv("THREEFOLD_LLM_KEY", "secret")
        code, out, _ = run(capsys, "ask", "how do bees talk?", "--in", "papers", "--json", "-k", "1")
        _, _, err = run(capsys, "ask", "how do bees talk?", "--in", "papers", "-k", "1")
    said = json.loads(out)
    assert code == 0
    assert (said["text"], said["cited"], said["unknown"], said["finish"]) == ("They dance [1] [5].", [1], [5], "length")
    assert (endpoint.asked[0]["model"], endpoint.asked[0]["key"]) == ("bees", "Bearer secret")
    assert "cites 5, and there are 1 passages" in err
    assert "was cut" in err


def test_an_answer_without_sources_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_model(piece("They talk."), *end()) as endpoint:
        given = ("--llm", endpoint.url, "--passage-tokens", "45", "--temperature", "0")
        code, _, err = run(capsys, "ask", "how do bees talk?", "--in", "papers", *given)
    assert code == 0
    assert "cites no passage" in err
    assert "1 passages found did not fit" in err
    assert endpoint.asked[0]["temperature"] == 0


def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "ask", "bees?", "--in", "papers")
    assert code == 2
    assert "--llm http://localhost:11434/v1" in err
    with chat_model() as endpoint:
        code, out, err = run(
            capsys, "ask", "x", "--in", "papers", "--llm", endpoint.url, "--where", '{"language": "qq"}'
        )
        assert (code, out) == (1, "")
        assert "nothing in papers matches; the chat model was not asked" in err
        assert endpoint.asked == []
    code, _, err = run(capsys, "ask", "bees?", "--in", "papers", "--llm", endpoint.url, "--llm-model", "x")
    assert code == 8
    assert "cannot be reached" in err


def test_the_best_sentence_of_a_hit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *TALL, "--json")
    (hit,) = json.loads(out)
    assert code == 0
    assert hit["quote"]["text"] == "It is 330 metres tall."
    assert hit["text"][hit["quote"]["start"] : hit["quote"]["end"]] == "It is 330 metres tall."
    _, out, _ = run(capsys, *TALL)
    assert "It was built in 1889. It is 330 metres tall." in out
