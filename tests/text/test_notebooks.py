from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from threefold.config import Chunking
from threefold.errors import DocumentError
from threefold.text.chunks import chunk_document
from threefold.text.documents import Skipped, load_files
from threefold.text.notebooks import read_notebook
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document

IMAGE = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo" * 50}}
CELLS: list[dict[str, Any]] = [
    {"cell_type": "markdown", "source": ["# Foxes\n", "\n", "Foxes live in dens."]},
    {"cell_type": "code", "source": ["# no heading\n", "count = 3"], "outputs": [IMAGE], "execution_count": 1},
    {"cell_type": "code", "source": " \n", "outputs": []},
    {"cell_type": "raw", "source": "as it is"},
    {"cell_type": "code", "source": 'print("```")\n', "outputs": [{"output_type": "stream", "text": "```"}]},
]
TEXT = """# Foxes

Foxes live in dens.

```python
# no heading
count = 3
```

as it is

````python
print("```")
````"""


def notebook(cells: Any = CELLS, **metadata: Any) -> bytes:
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}).encode()


def test_text_and_code_without_results() -> None:
    found = read_notebook(notebook(language_info={"name": "python"}), "x.ipynb")
    assert found.text == TEXT
    assert found.title == "Foxes"
    assert read_notebook(notebook(kernelspec={"language": "python"}), "x.ipynb").text == TEXT


def test_languages_and_titles_that_are_said_or_not() -> None:
    assert read_notebook(notebook(), "x.ipynb").text == TEXT.replace("```python", "```")
    odd = read_notebook(notebook(language_info={"name": "py`\nthon"}, title="A title"), "x.ipynb")
    assert (odd.text, odd.title) == (TEXT.replace("```python", "```"), "A title")
    assert read_notebook(notebook([]), "x.ipynb") == ("", "")


def test_version_three() -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Old"]},
        {"cell_type": "code", "input": ["x = 1"], "language": "python", "outputs": []},
    ]
    old = json.dumps({"worksheets": [{"cells": cells}], "metadata": {"name": ""}, "nbformat": 3}).encode()
    assert read_notebook(old, "x.ipynb") == ("## Old\n\n```\nx = 1\n```", "Old")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"{}", b'{"cells": 3}', b'{"cells": [3]}', b'{"cells": [{"cell_type": "code"}]}',
        b'{"cells": [{"cell_type": "code", "source": 3}]}', b'{"cells": [], "metadata": []}', b"[" * 100_000,
        b'{"cells": [{"cell_type": "heading", "source": "a", "level": "x"}]}',
    ],
)  # fmt: skip
def test_what_is_no_notebook(data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^x\.ipynb is not a notebook: ."):
        read_notebook(data, "x.ipynb")


def test_as_a_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "A.IPYNB").write_bytes(notebook())
    (tmp_path / "empty.ipynb").write_bytes(notebook([]))
    (tmp_path / "broken.ipynb").write_bytes(b'{"cells": 3}')
    document, *skipped = load_files(tmp_path)
    assert isinstance(document, Document)
    assert (document.id, document.title) == ("A.IPYNB", "Foxes")
    assert [one.empty for one in skipped if isinstance(one, Skipped)] == [False, True]
    assert len(chunk_document(document, tokenizer, Chunking(max_tokens=400))) == 1  # a comment of code is no heading
