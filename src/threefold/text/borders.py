"""Where a text may be cut: headings, paragraphs, sentences, lines, words; of prose and of source code.

A border is the character at which the part after it begins. Knows characters only; `chunks.py` knows tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

#: Files that are cut like source code: at blank lines before unindented lines, then at blank lines, then at lines.
_CODE = """
.bash .bat .c .cc .cfg .clj .cmake .conf .cpp .cs .css .cu .cxx .dart .el .env .ex .exs .go .gradle .graphql .h .hpp .hs
.ini .java .jl .js .jsx .kt .kts .less .lua .m .make .mk .ml .mm .php .pl .pm .properties .proto .ps1 .py .pyi .r .rb
.rs .scala .scss .sh .sol .sql .svelte .swift .tcl .tf .toml .ts .tsx .vb .vue .xml .yaml .yml .zig .zsh
"""
CODE_SUFFIXES = frozenset(_CODE.split())
_CODE_NAMES = frozenset({"dockerfile", "makefile", "cmakelists.txt"})

# No pattern may look at a character more often than a few times: texts have a million of anything.
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(?:(?!---)[^\n]*+\n){1,200}?---[ \t]*\r?$", re.MULTILINE)
_FRONT_TITLE = re.compile(r"^title:[ \t]*+[\"']?(?P<title>[^\r\n]*?)[\"']?[ \t\r]*$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(`{3,}(?![^\n]*`)|~{3,})", re.MULTILINE)
_HEADING = re.compile(
    r"^ {0,3}(?P<marks>\#{1,6})[ \t]++(?P<atx>\S[^\r\n]*+)"  # "# Title"
    r"|^ {0,3}(?P<setext>[^\s#>*+|-][^\r\n]*+)\r?\n {0,3}(?:={3,}+|-{3,}+)[ \t]*+\r?$",  # "Title" over "====="
    re.MULTILINE,
)
_PARAGRAPH = re.compile(r"\n[ \t\r]*+\n\s*+")
_LINE = re.compile(r"\n\s*+")
_WORD = re.compile(r"\s++")

#: Marks that end a sentence when a space follows, as in English; and marks that end one by themselves, as in Chinese.
#: Devanagari danda, Arabic and Urdu, Armenian, Ethiopic, Khmer, Burmese and Tibetan marks are among them.
_CLOSERS = r"[\"'”’»)\]}」』）】〉》]*+"
_SENTENCE = re.compile(
    r"(?:(?<!\b[A-Z])\.|[!?…])"
    + _CLOSERS
    + r"\s++(?=[^a-z])"  # not after an initial ("J. Doe") or before a small letter
    r"|[。！？｡．؟۔।॥։።፧፨។៕။༎།]++" + _CLOSERS + r"\s*+"
)


@dataclass(frozen=True, slots=True)
class Borders:
    """Positions where a part begins, ascending, without 0.

    sections    here a new chunk must begin
    levels      from the best place to cut to the worst that is still between words; each includes none of the others
    """

    sections: list[int]
    levels: tuple[list[int], ...]
    sentences: list[int]


def is_code(source: str) -> bool:
    """Whether a file of this name is source code."""
    path = PurePath(source)
    return path.suffix.lower() in CODE_SUFFIXES or path.name.lower() in _CODE_NAMES


def borders_of(text: str, *, code: bool) -> Borders:
    """The borders of a text. Source code has neither headings nor sentences; its lines stand in for sentences."""
    lines, words = _starts(_LINE, text), _starts(_WORD, text)
    paragraphs = _starts(_PARAGRAPH, text)
    if code:
        definitions = [at for at in paragraphs if text[at - 1] == "\n" and text[at] not in ")]}"]
        return Borders([], (definitions, paragraphs, lines, words), lines)
    sentences = _starts(_SENTENCE, text)
    return Borders(list(_sections(text)), (paragraphs, sentences, lines, words), sorted({*paragraphs, *sentences}))


def _starts(pattern: re.Pattern[str], text: str) -> list[int]:
    return [match.end() for match in pattern.finditer(text) if 0 < match.end() < len(text)]


def title_of(text: str) -> str:
    """The title of a Markdown text: of its front matter, else its first heading, else nothing."""
    front = _FRONT_MATTER.match(text)
    named = _FRONT_TITLE.search(front[0]) if front else None
    if named and named["title"]:
        return named["title"]
    for match in _headings(text):
        return (match["atx"] or match["setext"]).strip().rstrip("#").strip()
    return ""


def _headings(text: str) -> Iterator[re.Match[str]]:
    """Headings outside front matter and fenced code."""
    front = _FRONT_MATTER.match(text)
    body = front.end() if front else 0
    fences = list(_fenced(text, body))
    at = 0
    for match in _HEADING.finditer(text, body):
        while at < len(fences) and fences[at][1] <= match.start():
            at += 1
        if at == len(fences) or match.start() < fences[at][0]:
            yield match


def _fenced(text: str, begin: int) -> Iterator[tuple[int, int]]:
    """[start, end) of every fenced block; one that is never closed goes to the end."""
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text, begin):
        if opened is None:
            opened = match
        elif match[1].startswith(opened[1]):  # the same mark, at least as long
            yield opened.start(), match.end()
            opened = None
    if opened is not None:
        yield opened.start(), len(text)


def _sections(text: str) -> Iterator[int]:
    """Headings that begin a chunk: all but those that follow a heading directly ("# Part" over "## Chapter")."""
    body = 0  # where the text after the last heading begins
    for match in _headings(text):
        if text[body : match.start()].strip():
            yield match.start()
        body = match.end()
