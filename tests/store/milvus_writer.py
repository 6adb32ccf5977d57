"""A process that the tests end by force: `python -m tests.store.milvus_writer FILE add|hold|replace:N`.

add        opens the collection and adds chunks w0, w1, .. for ever; prints each number after its upsert returned
hold       opens the collection and waits
replace:N  puts others in the place of `chunks(8)`, and dies before the N-th call that writes to Milvus
"""

import itertools
import os
import sys
from typing import Any

from tests.store.corpus import chunk, chunks, encoded

from threefold.store.milvus import MilvusStore, connect


class Dying:
    """A client whose process dies before the call with number `left`."""

    def __init__(self, client: Any, left: int) -> None:
        self._client, self._left = client, left

    def __getattr__(self, name: str) -> Any:
        if name in ("upsert", "delete", "flush"):
            self._left -= 1
            if self._left == 0:
                os._exit(9)
        return getattr(self._client, name)


def main(file: str, job: str) -> None:
    connection = connect(f"milvus:{file}")
    store = MilvusStore.open(connection, "papers")
    if job == "hold":
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.read()
    if job.startswith("replace:"):
        connection.client = Dying(connection.client, int(job.partition(":")[2]))
        store.upsert([chunk(one.document_id, one.number, text="new") for one in chunks(8)], encoded(8, seed=2))
        os._exit(0)
    for i in itertools.count():
        store.upsert([chunk(f"w{i}", part) for part in range(3)], encoded(3, seed=i))
        sys.stdout.write(f"{i}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
