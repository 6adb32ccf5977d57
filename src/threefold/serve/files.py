"""Files for their owner alone, also where root writes what the server, as a user of its own, has to read."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path


def create(path: Path) -> int:
    """A new file, opened to be written, that only its owner reads: who owns the folder, where root makes it.

    What is there already, be it a link, is a FileExistsError: root must not write through a link of somebody else.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    if sys.platform != "win32":
        folder = path.parent.stat()
        with suppress(PermissionError):
            os.fchown(file, folder.st_uid, folder.st_gid)
    return file


def keep_access(file: int, old: os.stat_result) -> None:
    """Give a file the owner, group and mode of the one that it will replace, as far as the system lets this user."""
    if sys.platform == "win32":
        return
    with suppress(PermissionError):
        os.fchown(file, -1, old.st_gid)
    mode = stat.S_IMODE(old.st_mode)
    with suppress(PermissionError):
        os.fchmod(file, mode if os.fstat(file).st_gid == old.st_gid else mode & ~stat.S_IRWXG)
        os.fchown(file, old.st_uid, -1)
