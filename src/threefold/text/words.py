"""Words of a language for BM25: what Lucene's analysers do, as far as Python has it.

    NFKC, lower case -> runs of letters, digits and marks -> stop words out -> Snowball stems

Runs of scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Burmese, Tibetan) and of Hangul become
overlapping pairs of characters, as in Lucene's CJKAnalyzer. Stop words are the lists of bm25s, stems those of PyStemmer
(extra `evaluate`); a language without a list or a stemmer keeps its words as they are, and `describe` says so.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from threefold.errors import MissingExtraError

#: ISO 639-1 code -> Snowball algorithm.
STEMMERS: Final = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian",
    "it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian", "pl": "polish",
    "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "st": "sesotho", "sv": "swedish",
    "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip
#: ISO 639-1 code -> name of the list in `bm25s.stopwords`. English is the long list, as in Lucene and NLTK.
STOP_WORDS: Final = {
    "da": "DANISH", "de": "GERMAN", "en": "EN_PLUS", "es": "SPANISH", "fr": "FRENCH", "it": "ITALIAN", "nl": "DUTCH",
    "no": "NORWEGIAN", "pt": "PORTUGUESE", "ru": "RUSSIAN", "sv": "SWEDISH", "tr": "TURKISH",
}  # fmt: skip

#: Blocks of scripts without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3005\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
_PAIRED = _UNSPACED + "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # and Hangul
_RUNS = re.compile(f"[{_PAIRED}]+|[^{_PAIRED}]+")
_IS_PAIRED = re.compile(f"[{_PAIRED}]")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


class _Spaces(dict[int, int]):
    """Translation table: letters, digits and marks stay, everything else becomes a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LNM" else ord(" ")
        return self[code]


_SPACES: Final = _Spaces()


def analyse(texts: Sequence[str], language: str = "") -> list[list[str]]:
    """The terms of every text. `language` is an ISO 639-1 code; empty: neither stop words nor stems."""
    stop, stem = _stop_words(language), _stemmer(language)
    return [[term for term in stem([word for word in _words(text) if word not in stop]) if term] for text in texts]


def is_unspaced(text: str) -> bool:
    """Whether a text begins in a script that is written without spaces between words."""
    return _IS_UNSPACED.match(text) is not None


def describe(language: str) -> str:
    """What `analyse` does for a language, for reports."""
    parts = ["words in lower case, pairs of characters in scripts without spaces"]
    if language in STOP_WORDS:
        parts.append(f"bm25s's {STOP_WORDS[language].partition('_')[0].lower()} stop words out")
    parts.append(f"Snowball's {STEMMERS[language]} stems" if language in STEMMERS else "no stemming")
    return ", ".join(parts)


def _words(text: str) -> list[str]:
    words: list[str] = []
    for part in unicodedata.normalize("NFKC", text).lower().translate(_SPACES).split():
        for run in _RUNS.findall(part):
            if _IS_PAIRED.match(run) and len(run) > 1:
                words += [run[i : i + 2] for i in range(len(run) - 1)]
            else:
                words.append(run)
    return words


def _stop_words(language: str) -> frozenset[str]:
    if language not in STOP_WORDS:
        return frozenset()
    lists = importlib.import_module("bm25s.stopwords")
    return frozenset(getattr(lists, f"STOPWORDS_{STOP_WORDS[language]}"))


def _stemmer(language: str) -> Callable[[list[str]], list[str]]:
    if language not in STEMMERS:
        return lambda words: words
    try:
        stemmers = importlib.import_module("Stemmer")
    except ImportError as error:
        raise MissingExtraError("PyStemmer", "evaluate", f"BM25 with stems of {STEMMERS[language]}") from error
    stem: Callable[[list[str]], list[str]] = stemmers.Stemmer(STEMMERS[language]).stemWords
    return stem
