"""What the tests of the three frameworks share: documents, a collection of them here and on a server, the guide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serve.fakes import ServedEncoder, make_server, serving

from threefold.client import Client
from threefold.collection import Collection
from threefold.opening import manifest_for
from threefold.serve.settings import ServeConfig
from threefold.store.memory import MemoryStore
from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document

QUESTION = "a quick brown fox"
DOCUMENTS = [
    Document("fox", "The quick brown fox.", title="Fox", source="fox.txt", language="en", metadata={"year": 2024}),
    Document("dog", "The lazy dog sleeps.", source="dog.txt", metadata={"year": 1994, "source": "mine"}),
    Document("box", "Five dozen liquor jugs in a box.", metadata={"author": {"name": "Ann"}, "tags": ["a", "b"]}),
]
GUIDE = Path(__file__).parents[2] / "docs" / "frameworks.md"


def in_memory(encoder: TextEncoder) -> Collection:
    """The documents in a collection that is on no disk."""
    made = Collection.over(MemoryStore(manifest_for(encoder)), encoder)
    made.add(DOCUMENTS)
    return made


@contextmanager
def on_a_server(tokenizer: Tokenizer, folder: Path) -> Iterator[str]:
    """A server with the documents as its collection `papers`; gives its address."""
    encoder = ServedEncoder(tokenizer, name="fake-m3", max_tokens=64)
    with serving(make_server(encoder, ServeConfig(collections=str(folder)))) as url:
        with Client(url) as client:
            there = client.collection("papers")
            there.create()
            there.add(DOCUMENTS)
        yield url


def run_guide(framework: str, url: str = "") -> None:
    """Run what the guide says about one framework; with an address, also what it says about a server there."""
    sections = re.split(r"^## ", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    last = ["The collection of a server"] if url else []
    scope: dict[str, object] = {}
    for section in sections:
        if section.startswith(("# In", framework, *last)):
            for block in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
                exec(compile(block.replace("http://127.0.0.1:8000", url), GUIDE.name, "exec"), scope)
    papers = scope["papers"]
    assert isinstance(papers, Collection)
    papers.close()
