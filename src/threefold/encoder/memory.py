"""Memory of this process, as the operating system counts it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Most memory that this process ever had; 0 on systems that do not say it.

    On Linux not `ru_maxrss`, which begins at what the parent held when it forked: a process that was spawned from a
    large one would report the parent's memory as its own.
    """
    if found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text() if _STATUS.is_file() else ""):
        return int(found[1]) * 1024
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
