"""MKQA by the BGE-M3 paper's protocol: questions in 25 languages, passages of the English Wikipedia.

A hit is a passage in which an answer string occurs (`threefold.evaluate.answers`); mteb's `MKQARetrieval` is another
task, which searches short answer strings.

Looked up in FlagOpen/FlagEmbedding (`research/C_MTEB/MKQA`, `FlagEmbedding/evaluation/mkqa`): the questions are
`MKQA_test-data.zip` of the data set `Shitao/bge-m3-data`, one `LANGUAGE.jsonl` with "id", "question" and "answers" per
line (6,619 questions; unanswerable, yes/no and long-answer ones are left out). The passages are those of BEIR's
Natural Questions, read from `mteb/nq` (the revision of mteb 2.26), title and text joined by a newline, lower-cased and
normalised. No commit of `Shitao/bge-m3-data` is known to us, so its newest is taken.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

from threefold.characters import clean
from threefold.errors import EvaluationError
from threefold.evaluate.answers import without_tokens
from threefold.evaluate.hub import HubFiles, fetch
from threefold.evaluate.rows import checked_id, field, identifier, json_rows, optional, parsed, put
from threefold.evaluate.task import Task
from threefold.evaluate.texts import Texts

LANGUAGES: Final = (
    "ar", "da", "de", "es", "fi", "fr", "he", "hu", "it", "ja", "km", "ko", "ms",
    "nl", "no", "pl", "pt", "ru", "sv", "th", "tr", "vi", "zh_cn", "zh_hk", "zh_tw",
)  # fmt: skip
QUESTIONS: Final = HubFiles("Shitao/bge-m3-data", "main", ("MKQA_test-data.zip",))
PASSAGES: Final = HubFiles("mteb/nq", "b774495ed302d8c44a3a7ea25c90dbce03968f31", ("corpus.jsonl",))
#: Passages of BEIR's Natural Questions.
SIZE: Final = 2_681_468

_REMOVED = dict.fromkeys([*range(0x01, 0x09), 0x0E, 0x0F, *range(0x11, 0x1C), 0xAD])
_REPLACED = {
    sign: to
    for signs, to in (
        ("\u000b\u000c\u0085", " "),
        ("‐‑⁃‒–—―−－⁻", "-"),
        ("“”„‟", '"'),
        ("’՚Ꞌꞌ＇‘‚‛`´′‵", "'"),
        ("″‶", "''"),
        ("‴‷", "'''"),
        ("⁗", "''''"),
        ("…", "..."),
        ("⁄∕", "/"),
    )
    for sign in signs
}
_TABLE = {**_REMOVED, **{ord(sign): to for sign, to in _REPLACED.items()}}


def normalize(text: str) -> str:
    """One spelling for dashes, quotes, primes, slashes and dots (FlagEmbedding `mkqa/utils/normalize_text.py`,
    after ChemDataExtractor)."""
    return text.translate(_TABLE).replace(" . . . ", " ... ")


def load(language: str, split: str, data: Path | None = None) -> Task:
    """The questions of one language and all passages. The only split is "test"."""
    questions = fetch(QUESTIONS, data) / QUESTIONS.patterns[0]
    passages = fetch(PASSAGES, data) / PASSAGES.patterns[0]
    queries, answers = _questions(questions, language)
    documents = _passages(passages)
    odd = {
        f"passages fewer than the published {SIZE:,}": SIZE - len(documents),
        "answers without a letter or sign, never found": without_tokens(answers.values()),
    }
    return Task(
        name=f"mkqa/{language}",
        documents=documents,
        queries=queries,
        qrels={query: {} for query in queries},
        answers=answers,
        language="en",
        template="normalised, lower-cased {title}\\n{text}",
        warnings={what: count for what, count in odd.items() if count},
    )


def _passages(path: Path) -> Texts:
    texts = Texts()
    for where, row in json_rows(path):
        text = f"{optional(row, 'title', where)}\n{field(row, 'text', where)}"
        texts.add(identifier(row, "_id", where), normalize(text.lower()), where)
    return texts


def _questions(path: Path, language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if PurePosixPath(name).name == f"{language}.jsonl"]
            if len(names) != 1:
                raise EvaluationError(f"{path}: expected one file {language}.jsonl in it, found {len(names)}")
            text = archive.read(names[0]).decode("utf-8")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}") from error
    queries: dict[str, str] = {}
    answers: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, {names[0]}:{number}"
            id, question, strings = _question(line, where)
            put(queries, id, question, where)
            answers[id] = strings
    return queries, answers


def _question(line: str, where: str) -> tuple[str, str, tuple[str, ...]]:
    row = parsed(line, where)
    question = field(row, "question", where)
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise EvaluationError(f'{where}: "answers" must be a list of texts, got {str(answers)[:80]}')
    if not isinstance(row.get("id"), int | str):
        raise EvaluationError(f'{where}: expected an "id", got {row.get("id")!r}')
    return checked_id(str(row["id"]), where), question, tuple(map(clean, answers))
