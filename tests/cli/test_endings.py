"""One mapping from errors to exit statuses: a server that logs JSON ends as every other command does."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import typer

from threefold.cli.endings import Ending, ending_of, keeping
from threefold.cli.main import main
from threefold.errors import ConfigError, MissingExtraError, OfflineError, ServeError, StoreLockedError, WorkerError


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ConfigError("port: no"), Ending(2, "port: no")),
        (StoreLockedError("locked"), Ending(4, "locked")),
        (OfflineError("offline"), Ending(8, "offline")),
        (WorkerError("ended"), Ending(9, "ended")),
        (ServeError("busy"), Ending(1, "busy")),
        (KeyboardInterrupt(), Ending(130, "interrupted")),
        (typer.Abort(), Ending(130, "interrupted")),
        (FileNotFoundError(2, "No such file or directory", "x"), Ending(2, "x: No such file or directory")),
        (ZeroDivisionError("a bug"), None),
    ],
)
def test_what_an_error_ends_with(error: BaseException, ending: Ending | None) -> None:
    keeping(False)
    assert ending_of(error) == ending


def test_that_something_is_kept_is_said_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("threefold.cli.options.open_encoder", interrupt)
    monkeypatch.setattr("threefold.cli.options.opened_encoder", interrupt)
    (tmp_path / "texts.txt").write_text("a fox\n")
    texts, made = str(tmp_path / "texts.txt"), str(tmp_path / "made")
    for command, kept in (
        (["encode", texts, "-o", made, "--shard", "8"], True),
        (["encode", texts, "-o", made], False),
        (["index", texts, "--into", made], True),
        (["classify", texts, "--labels", "a,b"], False),
    ):
        assert main(command) == 130
        words = "error: interrupted" + ("; what was finished before is kept" if kept else "")
        assert capsys.readouterr().err.strip() == words


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("port: no"), 2),
        (MissingExtraError("x", "server", "serving"), 7),
        (WorkerError("the device is lost"), 9),
        (OSError(28, "No space left on device"), 2),
        (BrokenPipeError(32, "Broken pipe"), 0),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("how", ["text", "json"])
def test_the_log_does_not_change_the_status(
    error: BaseException, status: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("threefold.serve.run.serve", failing)
    monkeypatch.setattr("threefold.cli.main.silence", lambda stream: None)  # it is pytest's
    for logger in map(logging.getLogger, ("threefold", "uvicorn.error")):
        for name in ("handlers", "level", "propagate"):  # as they were, afterwards
            monkeypatch.setattr(logger, name, getattr(logger, name))
    try:
        ended = main(["serve", "--log-format", how])
    except SystemExit as exit:
        ended = int(str(exit.code))
    assert ended == status
