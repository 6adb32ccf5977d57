"""Ctrl-C while the commands are imported, a third of a second: importing this module makes it end the process at once,
with the status of an interrupted command and without a traceback, until `as_usual`.
"""

from __future__ import annotations

import os
import signal
import threading

#: Exit status after Ctrl-C.
STATUS = 130

# Only a handler that is Python's own is replaced: a shell may have told a command in the background to ignore Ctrl-C.
_ours = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _ours:
    signal.signal(signal.SIGINT, lambda *_: os._exit(STATUS))


def as_usual() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again."""
    if _ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
