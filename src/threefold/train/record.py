"""What a run says: lines of JSON, which are always written, and TensorBoard's files where that is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from threefold.replacing import replacing


class Record:
    """`log.jsonl` in a folder, one line per report, and `tensorboard/` beside it.

    stage  put into every line; lines of this stage after step `after` are dropped, since a resumed run makes them again
    last   the last line of this stage, without its name; empty before the first
    """

    def __init__(self, folder: Path, stage: str, after: int) -> None:
        self.stage, self.path = stage, folder / "log.jsonl"
        self.last: dict[str, float] = {}
        self._keep(after)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard" / stage, after)

    def __call__(self, line: Mapping[str, float]) -> None:
        """Write one line, at once."""
        self.last = dict(line)
        self._file.write(json.dumps({"stage": self.stage, **line}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, int(line["step"]))
            self._board.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _keep(self, after: int) -> None:
        if not self.path.is_file():
            return
        kept = [entry for entry in _entries(self.path) if entry["stage"] != self.stage or entry["step"] <= after]
        with replacing(self.path) as draft:
            draft.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        own = [entry for entry in kept if entry["stage"] == self.stage]
        self.last = {name: value for name, value in own[-1].items() if name != "stage"} if own else {}


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole: the process may have been killed while it wrote the last."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _board(folder: Path, after: int) -> Any:
    """TensorBoard's writer, of whichever package is there; None without one."""
    if find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=after + 1)
    if find_spec("tensorboardX") is not None:
        from tensorboardX import SummaryWriter as Writer

        return Writer(str(folder), purge_step=after + 1)
    return None
