"""Data sets in BEIR layout: a folder, an archive, or a folder of such folders, at any depth.

    corpus.jsonl     {"_id": ..., "title": ..., "text": ...} per line; the title may be missing
    queries.jsonl    {"_id": ..., "text": ...} per line
    qrels.tsv        query-id, corpus-id, score, with a header line; or qrels/SPLIT.tsv;
                     or qrels/SPLIT.jsonl with these three keys per line

The folders of `FlagEmbedding.evaluation.custom` are read as well: `SPLIT_queries.jsonl` and `SPLIT_qrels.jsonl` beside
the corpus, with `id` for `_id`, and `qid`, `docid`, `relevance` for the three keys.

Broken lines are errors with file and line number. What contradicts itself (an id twice, a judgement about an id
that is not there) is an error too, or with `strict=False` a warning that is counted and ends up in the report.
"""

from __future__ import annotations

import lzma
import string
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from threefold.characters import clean
from threefold.errors import EvaluationError
from threefold.evaluate.measures import Qrels
from threefold.evaluate.rows import field, identifier, json_rows, lines, optional, read_grade
from threefold.evaluate.task import Task

#: How title and text become one text: the way of the BGE-M3 paper (FlagEmbedding issue 653).
TEMPLATE = "{title}\n{text}"


def titled(title: str, text: str, template: str = TEMPLATE) -> str:
    """One text of both; the text alone where there is no title."""
    return template.format(title=title, text=text) if title else text


class _Layout(NamedTuple):
    """What files and keys are called; `{split}` stands for the split."""

    queries: str
    qrels: tuple[str, ...]
    id: str = "_id"
    judgement: tuple[str, str, str] = ("query-id", "corpus-id", "score")


_BEIR: Final = _Layout("queries.jsonl", ("qrels.tsv", "qrels/{split}.tsv", "qrels/{split}.jsonl"))
#: FlagEmbedding 1.4, abc/evaluation/data_loader.py.
_FLAG: Final = _Layout("{split}_queries.jsonl", ("{split}_qrels.jsonl",), "id", ("qid", "docid", "relevance"))

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def iter_tasks(
    path: Path,
    *,
    split: str = "test",
    strict: bool = True,
    template: str = TEMPLATE,
    ignore_identical_ids: bool = False,
    language: str = "",
) -> Iterator[Task]:
    """Every task under `path` (folder or archive), sorted by path, loaded one at a time.

    A task is named by its place: `xquad/ar` for `xquad/ar/corpus.jsonl` under xquad, or in xquad.tar.xz.
    """
    _check_template(template)
    with _as_folder(path) as (root, name):
        for label, folder in _folders(path, root, name):
            yield load_task(
                folder,
                name=label,
                split=split,
                strict=strict,
                template=template,
                ignore_identical_ids=ignore_identical_ids,
                language=language,
            )


def task_names(path: Path) -> list[str]:
    """What the tasks of `iter_tasks` are called. Their files are not read, but an archive is unpacked."""
    with _as_folder(path) as (root, name):
        return [label for label, _ in _folders(path, root, name)]


def load_task(
    folder: Path,
    *,
    name: str | None = None,
    split: str = "test",
    strict: bool = True,
    template: str = TEMPLATE,
    ignore_identical_ids: bool = False,
    language: str = "",
) -> Task:
    """One data set. Queries without judgements are left out, and counted."""
    _check_template(template)
    odd = _Oddities(strict)
    layout = _FLAG if not (folder / _BEIR.queries).exists() and any(folder.glob("*_queries.jsonl")) else _BEIR
    documents = _texts(folder / "corpus.jsonl", layout.id, template, odd)
    queries = _texts(folder / layout.queries.format(split=split), layout.id, "{text}", odd)
    qrels = _known(_qrels(_qrels_file(folder, layout, split), layout, odd), documents, queries, odd)
    odd.count("documents without text", sum(not text.strip() for text in documents.values()))
    odd.count("queries without text", sum(not queries[id].strip() for id in qrels))
    odd.count("queries without judgements, not run", sum(id not in qrels for id in queries))
    odd.count("judged queries without a relevant document", sum(max(g.values()) < 1 for g in qrels.values()))
    return Task(
        name=name or folder.name,
        documents=documents,
        queries={id: text for id, text in queries.items() if id in qrels},
        qrels=qrels,
        template=template,
        ignore_identical_ids=ignore_identical_ids,
        language=language,
        warnings=dict(odd.counts),
    )


def _check_template(template: str) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise EvaluationError(f"template {template!r}: {error}") from error
    if "text" not in fields or fields - {"title", "text"}:
        raise EvaluationError(
            f"template {template!r} must hold {{text}}, may hold {{title}}, and nothing else in braces"
        )


class _Oddities:
    """What is wrong with a data set: an error when strict, else counted."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()

    def found(self, what: str, where: str) -> None:
        if self.strict:
            raise EvaluationError(f"{where}: {what}. Repair the file, or count such cases: strict=False (--lenient)")
        self.counts[what.split(": ")[0]] += 1

    def count(self, what: str, times: int) -> None:
        if times:
            self.counts[what] += times


# ---- files ------------------------------------------------------------------------------------------------


@contextmanager
def _as_folder(path: Path) -> Iterator[tuple[Path, str]]:
    """A folder with the data and the name of its tasks; archives are unpacked for as long as it is open."""
    if path.is_dir():
        yield path, path.resolve().name
        return
    suffix = next((end for end in sorted(_ARCHIVES, key=len, reverse=True) if path.name.endswith(end)), None)
    if suffix is None or not path.is_file():
        raise EvaluationError(f"{path}: neither a folder nor an archive ({', '.join(_ARCHIVES)})")
    with tempfile.TemporaryDirectory(prefix="threefold-") as temporary:
        root = Path(temporary)
        _unpack(path, root)
        inside = list(root.iterdir())
        if len(inside) == 1 and inside[0].is_dir():
            yield inside[0], inside[0].name
        else:
            yield root, path.name.removesuffix(suffix)


def _folders(path: Path, root: Path, name: str) -> list[tuple[str, Path]]:
    """(name of the task, its folder) of every data set below the root."""
    folders = sorted(file.parent for file in root.rglob("corpus.jsonl"))
    if not folders:
        raise EvaluationError(f"{path}: no corpus.jsonl in it or below it; expected a data set in BEIR layout")
    places = [folder.relative_to(root) for folder in folders]
    labels = [PurePosixPath(name if len(place.parts) < 2 else "", *place.parts) for place in places]
    return [(clean(str(label)), folder) for label, folder in zip(labels, folders, strict=True)]


def _unpack(archive: Path, root: Path) -> None:
    """Copy the data files out; links, devices and paths that lead outside are not data."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                stream = tar.extractfile(member) if member.isfile() and place.suffix in (".jsonl", ".tsv") else None
                if stream is None:
                    continue
                if place.is_absolute() or ".." in place.parts:
                    raise EvaluationError(f"{archive}: refuses to unpack {member.name!r}, which leads outside")
                target = root.joinpath(*place.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("wb") as out:
                    while block := stream.read(1 << 20):
                        out.write(block)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise EvaluationError(f"{archive}: cannot be read as an archive: {error}") from error


def _qrels_file(folder: Path, layout: _Layout, split: str) -> Path:
    choices = [folder / name.format(split=split) for name in layout.qrels]
    for path in choices:
        if path.is_file():
            return path
    raise EvaluationError(f"{folder}: no judgements; expected {' or '.join(map(str, choices))}")


def _texts(path: Path, key: str, template: str, odd: _Oddities) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, row in json_rows(path):
        id = identifier(row, key, where)
        if id in texts:
            odd.found(f"id twice, the first one counts: {id!r}", where)
            continue
        title, text = optional(row, "title", where), field(row, "text", where)
        texts[id] = titled(title, text, template)
    if not texts:
        raise EvaluationError(f"{path}: is empty")
    return texts


# ---- judgements -------------------------------------------------------------------------------------------


def _qrels(path: Path, layout: _Layout, odd: _Oddities) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for place, (where, query, document, text) in enumerate(_judgements(path, layout)):
        if place == 0 and not (text[:1].isdecimal() or text.startswith(("+", "-", "."))):  # the header
            continue
        score = read_grade(text, where, "score")
        grades = qrels.setdefault(query, {})
        if document in grades:
            odd.found(f"judgement twice, the first one counts: {query!r}, {document!r}", where)
            continue
        grades[document] = score
    if not qrels:
        raise EvaluationError(f"{path}: no judgements in it")
    return qrels


def _judgements(path: Path, layout: _Layout) -> Iterator[tuple[str, str, str, str]]:
    """(place for messages, query, document, grade) of every line."""
    if path.suffix == ".jsonl":
        for where, row in json_rows(path):
            query, document, score = layout.judgement
            yield where, identifier(row, query, where), identifier(row, document, where), _score(row.get(score), where)
        return
    for where, line in lines(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 3:
            raise EvaluationError(f"{where}: expected 3 cells (query-id, corpus-id, score), got {len(cells)}")
        query, document, score = cells
        yield where, query, document, score


def _score(value: Any, where: str) -> str:
    """A number of JSON as text; 1.0 is a whole number."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise EvaluationError(f"{where}: the score must be a whole number, got {str(value)[:60]}")


def _known(qrels: dict[str, dict[str, int]], documents: Any, queries: Any, odd: _Oddities) -> Qrels:
    """Judgements about queries that exist. Those about missing documents stay: nobody can find them, which is true."""
    for query, grades in qrels.items():
        if query not in queries:
            odd.found(f"judged query that is not in the queries, not counted: {query!r}", "qrels")
        for document in grades:
            if document not in documents:
                odd.found(f"judged document that is not in the corpus, never found: {document!r}", "qrels")
    return {query: grades for query, grades in qrels.items() if query in queries}
