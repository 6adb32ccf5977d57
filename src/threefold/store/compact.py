"""Build the index of one shard, in a process of its own: the engine holds the interpreter's lock while it does.

Run by `EdgeStore.optimize` on a copy that nobody else has open: `python compact.py SHARD`.
"""

import sys

from qdrant_edge import EdgeShard


def main(path: str) -> None:
    """Optimise the shard at `path`, durably."""
    shard = EdgeShard.load(path)
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main(sys.argv[1])
