"""Build the index of one shard, in a process of its own: the engine holds the interpreter's lock while it does.

Run by `EdgeStore.optimize` on a copy that nobody else has open: `python compact.py SHARD PARENT`.
"""

import ctypes
import os
import signal
import sys

from qdrant_edge import EdgeShard

#: From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """End when this process does, whose lock we hold too: nobody could open the collection for hours (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            sys.exit("the process that asked for the index has ended")


def main(path: str, parent: int) -> None:
    """Optimise the shard at `path`, durably."""
    end_with(parent)
    shard = EdgeShard.load(path)
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
