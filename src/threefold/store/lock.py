"""One process per collection: an advisory lock on `folder/lock`, with the owner's process id inside.

The operating system releases it when the process ends, however it ends, so there are no stale locks. A process that
was started with `handles` holds it as well, for as long as it runs.
"""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path

from threefold.errors import StoreLockedError
from threefold.store.folder import lock_path

if sys.platform == "win32":
    import msvcrt

    #: Windows locks bytes against reading too; one far behind the process id leaves that readable.
    _LOCKED_BYTE = 2**30

    def _try_lock(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """Held from construction to `release` (or until it is garbage)."""

    def __init__(self, folder: Path) -> None:
        handle = os.open(lock_path(folder), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _try_lock(handle)
        except OSError:
            owner = _owner(handle)
            os.close(handle)
            raise StoreLockedError(
                f"{folder}: another process has this collection open ({owner}). "
                "Close it there first; to share one collection, serve it from one process or use a cluster (url=)"
            ) from None
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode("ascii"))
        #: For `pass_fds` of a child that works on the folder; Windows has no locks that are inherited.
        self.handles = () if sys.platform == "win32" else (handle,)
        self._close = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        self._close()


def _owner(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 20).decode("ascii", "replace").strip()
    if not text.isdigit():
        return "process id unknown"
    return "this process, through another store" if int(text) == os.getpid() else f"process {text}"
