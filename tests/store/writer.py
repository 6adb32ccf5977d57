"""A process that the tests end by force: `python -m tests.store.writer FOLDER add|hold|optimize|replace:N`.

add   opens the collection and adds chunks w0, w1, .. for ever; prints each number after its upsert returned
hold  opens the collection and waits
optimize   builds the index
replace:N  puts longer token vectors in the place of those of `chunks(60)`, and dies before the N-th call of the engine
"""

import itertools
import os
import sys
from typing import Any

from tests.store.corpus import chunk, chunks, encoded

from threefold.store.edge import EdgeStore


class Dying:
    """A shard whose process dies before the call with number `left`."""

    def __init__(self, shard: Any, left: int) -> None:
        self._shard, self._left = shard, left

    def __getattr__(self, name: str) -> Any:
        if name in ("update", "flush"):
            self._left -= 1
            if self._left == 0:
                os._exit(9)
        return getattr(self._shard, name)


def replace(store: EdgeStore, calls: int) -> None:
    """Die in the middle of a write in the place of other chunks."""
    store._shard = Dying(store._shard, calls)  # type: ignore[assignment]
    store.upsert(chunks(60), encoded(60, seed=2, tokens=30))


def main(folder: str, job: str) -> None:
    store = EdgeStore.open(folder)
    if job == "hold":
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.read()
    if job == "optimize":
        store.optimize()
    if job.startswith("replace:"):
        replace(store, int(job.partition(":")[2]))
    for i in itertools.count():
        store.upsert([chunk(f"w{i}", part) for part in range(3)], encoded(3, seed=i))
        sys.stdout.write(f"{i}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
