"""Formats with mark-up -> plain text with Markdown headings: HTML by BeautifulSoup, office files by markitdown.

Headings are written as Markdown so that chunks can begin at them.
"""

from __future__ import annotations

import codecs
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from threefold.errors import DocumentError, MissingExtraError
from threefold.text.decode import decode, has_mark

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

OFFICE_SUFFIXES = (".pdf", ".docx", ".pptx", ".xlsx", ".epub")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")

#: How Office files begin that are encrypted (MS-OFFCRYPTO), and those before 2007: MS-CFB, 2.2.
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

#: Most bytes of XML that an office file or a book may unpack to: some hundred kilobytes can unpack to gigabytes, and
#: parsers hold a multiple of that.
MOST_XML = 100_000_000
_XML = (".xml", ".rels", ".opf", ".xhtml", ".html", ".htm")

_HIDDEN = frozenset({"script", "style", "noscript", "template", "head", "title", "svg", "iframe", "object", "canvas"})
_BLOCK_NAMES = """
address article aside blockquote body dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6
header hr html li main nav ol p pre section summary table tbody tfoot thead tr ul
"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_SPACES = re.compile(r"\s+")
_LINE_SPACES = re.compile(r"[ \t]*\n[ \t]*")
_BLANK_LINES = re.compile(r"\n{3,}")

#: Spaces of <pre> stand as characters that no text has (Unicode: "for internal use") until the others are tidied.
_KEPT = {" ": "\ufdd0", "\t": "\ufdd1", "\n": "\ufdd2"}
_KEEP, _GIVE_BACK = str.maketrans(_KEPT), str.maketrans({kept: space for space, kept in _KEPT.items()})

#: What pages mean by the name of an encoding: the larger one that browsers read
#: (https://encoding.spec.whatwg.org/#names-and-labels). By Python's names.
_MEANT = {
    "iso8859-1": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874", "gb2312": "gb18030", "gbk": "gb18030",
    "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip


class Rendered(NamedTuple):
    """Visible text and title; the title is empty when the file has none."""

    text: str
    title: str


def read_html(data: bytes, name: str) -> Rendered:
    """Visible text of an HTML page, lines of <pre> as they are.

    A byte order mark says the encoding, else the page does, else it is UTF-8.
    """
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    page = _decode_html(data, name)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # guesses about what the caller meant: "looks like a file name", "looks like XML"
        try:
            soup = BeautifulSoup(page, "html.parser")
        except ParserRejectedMarkup as error:
            raise DocumentError(f"{name} is not HTML: {_reason(error)}") from error
    text = _LINE_SPACES.sub("\n", "".join(_visible(soup)))
    text = _BLANK_LINES.sub("\n\n", text).strip().translate(_GIVE_BACK)
    return Rendered(text.strip("\n").rstrip(), _title_of(soup))


def _title_of(soup: BeautifulSoup) -> str:
    """The first title that says something, but for those of drawings; else the first such heading."""
    titles = (tag for tag in soup.find_all("title") if tag.find_parent("svg") is None)
    for tag in chain(titles, soup.find_all("h1")):
        if title := _SPACES.sub(" ", tag.get_text()).strip():
            return title
    return ""


def _decode_html(data: bytes, name: str) -> str:
    from bs4.dammit import EncodingDetector

    codec = EncodingDetector.find_declared_encoding(data, is_html=True)
    if not codec or codec.lower().startswith("utf") or has_mark(data):
        return decode(data, name)
    try:
        meant = _MEANT.get(codecs.lookup(codec).name)
        if meant is not None:
            with suppress(UnicodeDecodeError):  # a byte that only the smaller one has
                return data.decode(meant)
        return data.decode(codec)
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name} declares {codec}, but is not: {error.reason} at byte {error.start:,}") from error
    except (LookupError, UnicodeError):  # one of Python's encodings, "undefined", decodes nothing
        raise DocumentError(f"{name} declares the unknown encoding {codec!r}. Save it as UTF-8") from None


def _visible(soup: object) -> Iterator[str]:
    """Text and breaks in reading order. A stack instead of recursion: pages nest deeper than Python may."""
    from bs4.element import NavigableString, Tag

    stack: list[tuple[object, bool]] = [(soup, False)]  # node, inside <pre>
    while stack:
        node, verbatim = stack.pop()
        if isinstance(node, Tag):
            if node.name in _HIDDEN or _is_hidden(node):
                continue
            before, after = _breaks(node.name)
            inside = verbatim or node.name == "pre"
            stack.append((after, True))
            stack.extend((child, inside) for child in reversed(node.contents))
            yield before
        elif type(node) is NavigableString:  # its subclasses are comments, doctypes, scripts
            yield node.replace("\r\n", "\n").translate(_KEEP) if verbatim else _SPACES.sub(" ", node)
        elif type(node) is str:
            yield node


def _is_hidden(tag: object) -> bool:
    attributes = getattr(tag, "attrs", {})
    style = str(attributes.get("style", "")).replace(" ", "").lower()
    return "hidden" in attributes or "display:none" in style


def _breaks(name: str) -> tuple[str, str]:
    """What stands before and after an element in plain text."""
    if name in _HEADINGS:
        return "\n\n" + _HEADINGS[name], "\n\n"
    if name in ("li", "tr", "dt", "dd"):
        return "\n", "\n"
    if name in _BLOCKS:
        return "\n\n", "\n\n"
    if name == "br":
        return "\n", ""
    return ("\t", "") if name in ("td", "th") else ("", "")


def read_office(path: Path) -> Rendered:
    """Text of a pdf, docx, pptx, xlsx or epub file by markitdown (extra `docs`). Nothing leaves the machine.

    The one converter of the format is asked: with all of them, markitdown reads a broken PDF as plain text.
    """
    kind = path.suffix.lower().removeprefix(".")
    purpose = f"reading {kind} files"
    try:
        markitdown = import_module("markitdown")
        converters = import_module("markitdown.converters")
    except ImportError as error:
        raise MissingExtraError("markitdown", "docs", purpose) from error
    _check_signature(path, kind)
    if kind != "pdf":
        _check_unpacked(path, kind)
    reader = markitdown.MarkItDown(enable_builtins=False, enable_plugins=False)
    reader.register_converter(getattr(converters, f"{kind.capitalize()}Converter")())
    try:
        result = reader.convert_local(path)
    except markitdown.MissingDependencyException as error:
        raise MissingExtraError(f"markitdown[{kind}]", "docs", purpose) from error
    except Exception as error:  # parsers of foreign formats raise anything
        raise DocumentError(f"{path} is damaged or not readable: {_reason(_cause(error))}") from error
    return Rendered(result.markdown, result.title or "")


def _cause(error: Exception) -> Exception:
    """What the parser of the format raised: markitdown wraps it, in words about its own classes."""
    attempts = [one for one in getattr(error, "attempts", None) or () if one.exc_info is not None]
    return attempts[-1].exc_info[1] if attempts else error


def _reason(error: Exception) -> str:
    """What a foreign parser says, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_signature(path: Path, kind: str) -> None:
    with path.open("rb") as file:
        head = file.read(1024)
    good = b"%PDF-" in head if kind == "pdf" else head.startswith(b"PK\x03\x04")
    if head.startswith(_OLE):
        raise DocumentError(
            f"{path} is protected by a password, or in the format of Office before 2007. Save it as {kind} without one"
        )
    if not good:
        raise DocumentError(f"{path} is damaged: it does not begin as a {kind} file does")


def _check_unpacked(path: Path, kind: str) -> None:
    """Refuse what would take minutes and gigabytes, by the sizes that the file declares: a parser reads no more."""
    try:
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist() if part.filename.lower().endswith(_XML))
    except Exception:  # the parser says how it is damaged
        return
    if size > MOST_XML:
        other = "csv" if kind == "xlsx" else "plain text"
        raise DocumentError(
            f"{path} unpacks to {size / 1e6:,.0f} MB of XML; at most {MOST_XML / 1e6:,.0f} MB are read. "
            f"Save it as several files, or as {other}"
        )
