"""A process that the tests end by force: `python -m tests.store.writer FOLDER add|hold`.

add   opens the collection and adds chunks w0, w1, .. for ever; prints each number after its upsert returned
hold  opens the collection and waits
"""

import itertools
import sys

from tests.store.corpus import chunk, encoded

from threefold.store.edge import EdgeStore


def main(folder: str, job: str) -> None:
    store = EdgeStore.open(folder)
    if job == "hold":
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.read()
    for i in itertools.count():
        store.upsert([chunk(f"w{i}", part) for part in range(3)], encoded(3, seed=i))
        sys.stdout.write(f"{i}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
