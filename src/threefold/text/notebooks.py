"""Jupyter notebooks -> Markdown: text as it is, code between fences, results left out.

Results are images in letters, tables of numbers and traces: none of it is what somebody looks for, and it is most of
the file. (https://nbformat.readthedocs.io/en/latest/format_description.html; cells of version 3 are in worksheets.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from threefold.errors import DocumentError
from threefold.text.borders import title_of
from threefold.text.decode import decode
from threefold.text.rich import Rendered

NOTEBOOK_SUFFIX = ".ipynb"


def read_notebook(data: bytes, name: str) -> Rendered:
    """The cells of a notebook in order; its title is that of its metadata, else the first heading."""
    try:
        notebook = json.loads(decode(data, name))
        language = _language(notebook)
        text = "\n\n".join(part for cell in _cells(notebook) if (part := _markdown(cell, language)))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise DocumentError(f"{name} is not a notebook: {error or type(error).__name__}") from error
    title = notebook.get("metadata", {}).get("title")
    return Rendered(text, title if isinstance(title, str) and title else title_of(text))


def _cells(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "worksheets" in notebook:
        for sheet in notebook["worksheets"]:
            yield from sheet["cells"]
    else:
        yield from notebook["cells"]


def _language(notebook: dict[str, Any]) -> str:
    """What a fence says of the code between them."""
    metadata = notebook.get("metadata", {})
    said = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return said if isinstance(said, str) and said.isprintable() and "`" not in said else ""


def _markdown(cell: dict[str, Any], language: str) -> str:
    """One cell; empty where nothing is in it."""
    given = cell["input"] if "input" in cell else cell["source"]
    source = given if isinstance(given, str) else "".join(given)
    if not source.strip():
        return ""
    if cell["cell_type"] == "heading":  # version 3
        return f"{'#' * int(cell.get('level', 1))} {source.strip()}"
    if cell["cell_type"] != "code":
        return source.strip("\n")
    fence = "```"
    while fence in source:
        fence += "`"
    return f"{fence}{language}\n{source.strip(chr(10))}\n{fence}"
