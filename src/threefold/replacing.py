"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft that takes the place of `path` when the block ends; after an error in it, `path` is what it was.

    What a link points to is replaced, not the link. The draft has a name for each process and the suffix of `path`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(path) as draft:
    ...     _ = draft.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    target = path.resolve()
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield draft
        draft.replace(target)
    finally:
        with contextlib.suppress(OSError):  # gone after success; after a failure the first error counts
            draft.unlink()
