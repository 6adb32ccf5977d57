from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import CORPUS, train_unigram

from threefold.errors import CheckpointError, InputError
from threefold.text.spm import read_unigram
from threefold.text.tokenizer import Tokenizer, xlmr_backend

SHARED = Path(__file__).parents[3] / "shared/data/tokenizer"
LONG = "the quick brown fox jumps over the lazy dog"
#: Texts that break tokenizers.
TROUBLE = [
    "",
    " ",
    "\n\t",
    "\0",
    "a\0b",
    "\ud800",
    "x\udfffy",
    "\u200b",
    "\ufeffa",
    "<s>",
    "</s> <mask>",
    "a\u0301",
    "ﷺ",
]


@pytest.fixture(params=["unigram", "wordpiece"])
def each(request: pytest.FixtureRequest, tokenizer: Tokenizer, wordpiece: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "unigram" else wordpiece


# ---- ids ------------------------------------------------------------------------------------------------


def test_specials_stand_around_every_text(each: Tokenizer) -> None:
    tokens = each.encode(["", LONG], max_tokens=100)
    assert tokens[0].tolist() == [each.cls_id, each.sep_id]
    assert (tokens[1][0], tokens[1][-1]) == (each.cls_id, each.sep_id)
    assert each.overhead == 2
    assert tokens.lengths.tolist() == each.count(["", LONG]).tolist() == tokens.available.tolist()
    assert not tokens.truncated.any()


def test_no_texts(each: Tokenizer) -> None:
    tokens = each.encode([], max_tokens=10)
    assert (len(tokens), len(tokens.ids), len(each.count([]))) == (0, 0, 0)


def test_truncation_keeps_the_end_that_was_asked_for(each: Tokenizer) -> None:
    whole = each.encode([LONG], max_tokens=100)[0].tolist()
    for truncate, kept in (("end", whole[1:5]), ("start", whole[-5:-1])):
        tokens = each.encode([LONG, "a"], max_tokens=6, truncate=truncate)  # type: ignore[arg-type]
        assert tokens[0].tolist() == [each.cls_id, *kept, each.sep_id]
        assert tokens.truncated.tolist() == [True, False]
        assert tokens.available.tolist()[0] == len(whole)


def test_truncation_none_refuses_and_names_both_numbers(each: Tokenizer) -> None:
    count = int(each.count([LONG])[0])
    with pytest.raises(InputError, match=f"text 1 has {count} tokens, the limit is 6"):
        each.encode(["a", LONG], max_tokens=6, truncate="none")
    assert len(each.encode([LONG], max_tokens=count, truncate="none")[0]) == count


def test_no_room_for_any_text(each: Tokenizer) -> None:
    with pytest.raises(InputError, match="max_tokens must be at least 3; got 2"):
        each.encode(["a"], max_tokens=2)


def test_pairs(each: Tokenizer) -> None:
    a, b = (each.encode([text], max_tokens=100)[0].tolist()[1:-1] for text in ("quick fox", "lazy dog"))
    middle = [each.sep_id] * (2 if each.token(each.cls_id) == "<s>" else 1)
    tokens = each.encode_pairs(["quick fox"], ["lazy dog"], max_tokens=100)
    assert tokens[0].tolist() == [each.cls_id, *a, *middle, *b, each.sep_id]
    assert not tokens.truncated[0]


def test_pairs_cut_the_query_first_and_then_only_the_text(each: Tokenizer) -> None:
    a, b = (each.encode([text], max_tokens=100)[0].tolist()[1:-1] for text in (LONG, LONG[::-1]))
    middle = 2 if each.token(each.cls_id) == "<s>" else 1
    tokens = each.encode_pairs([LONG], [LONG[::-1]], max_tokens=16, max_query_tokens=4)
    row = tokens[0].tolist()
    assert len(row) == 16
    assert row[1:5] == a[:4]
    assert row[5 + middle : -1] == b[: 16 - 4 - middle - 2]
    assert tokens.truncated[0]
    with pytest.raises(InputError, match="2 queries but 1 texts"):
        each.encode_pairs(["a", "b"], ["c"], max_tokens=16)


def test_pairs_with_a_limit_for_the_text_alone_leave_the_query(each: Tokenizer) -> None:
    a, b = (each.encode([text], max_tokens=500)[0].tolist()[1:-1] for text in (LONG, LONG[::-1]))
    middle = 2 if each.token(each.cls_id) == "<s>" else 1
    for most in (1, 5, len(b), 400):
        row = each.encode_pairs([LONG], [LONG[::-1]], max_tokens=400, max_text_tokens=most)
        assert row[0].tolist()[1 : 1 + len(a)] == a
        assert row[0].tolist()[1 + len(a) + middle : -1] == b[:most]
        assert row.truncated.tolist() == [most < len(b)]
    tight = each.encode_pairs(["fox"], [LONG * 3], max_tokens=16, max_text_tokens=400)
    assert tight.lengths.tolist() == [16]
    with pytest.raises(InputError, match="max_text_tokens must be at least 1; got 0"):
        each.encode_pairs(["a"], ["b"], max_tokens=16, max_text_tokens=0)


def test_pairs_say_where_the_second_text_begins_and_what_there_was(each: Tokenizer) -> None:
    a, b = (int(each.encode([text], max_tokens=500).lengths[0]) - 2 for text in (LONG * 3, "lazy dog"))
    middle = 2 if each.token(each.cls_id) == "<s>" else 1
    tokens = each.encode_pairs([LONG * 3, "lazy dog"], ["lazy dog", LONG * 3], max_tokens=20, max_query_tokens=3)
    assert tokens.seconds is not None
    assert tokens.seconds.tolist() == [1 + 3 + middle, 1 + min(b, 3) + middle]
    assert tokens.available.tolist() == [2 + middle + a + b] * 2
    assert tokens.truncated.tolist() == [True, True]  # a query that was cut counts as much as a text


def test_pairs_always_leave_room_for_the_text(each: Tokenizer) -> None:
    """Three quarters of a very small limit and the special tokens would fill it."""
    middle = 2 if each.token(each.cls_id) == "<s>" else 1
    least = 2 + middle + 2
    tokens = each.encode_pairs([LONG], [LONG], max_tokens=least)
    assert tokens.lengths.tolist() == [least]
    with pytest.raises(InputError, match=f"max_tokens must be at least {least} for a pair"):
        each.encode_pairs([LONG], [LONG], max_tokens=least - 1)
    with pytest.raises(InputError, match="max_query_tokens must be from 1 to"):
        each.encode_pairs([LONG], [LONG], max_tokens=20, max_query_tokens=18)


def test_pairs_cut_each_distinct_text_into_tokens_once(each: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    encodings = Tokenizer._encodings

    def counted(self: Tokenizer, texts: Sequence[str]) -> Any:
        read.extend(texts)
        return encodings(self, texts)

    monkeypatch.setattr(Tokenizer, "_encodings", counted)
    tokens = each.encode_pairs(["fox"] * 3, ["dog", "fox", "dog"], max_tokens=20)
    assert sorted(read) == ["dog", "fox", "fox"]
    assert tokens[0].tolist() == tokens[2].tolist() != tokens[1].tolist()
    assert len(each.encode_pairs([], [], max_tokens=20)) == 0
    with pytest.raises(InputError, match="text 0 must be a string; got list"):
        each.encode_pairs([["fox"]], ["dog"], max_tokens=20)  # type: ignore[list-item]


@pytest.mark.parametrize("text", TROUBLE, ids=ascii)
def test_trouble_has_ids_and_offsets_inside_the_text(each: Tokenizer, text: str) -> None:
    ids = each.encode([text], max_tokens=50)[0]
    assert ((ids >= 0) & (ids < each.vocab)).all()
    pieces = each.pieces(text)
    assert [piece.id for piece in pieces] == ids[1:-1].tolist()
    assert all(0 <= piece.start <= piece.end <= len(text) for piece in pieces)


def test_a_special_token_in_a_text_is_text(each: Tokenizer) -> None:
    for special in (each.cls_id, each.sep_id, each.pad_id):
        ids = each.encode([f"a {each.token(special)} b"], max_tokens=50)[0].tolist()
        assert special not in ids[1:-1]


def test_a_lone_surrogate_is_read_as_the_replacement_character(each: Tokenizer) -> None:
    tokens = each.encode(["fox \ud800 dog", "fox \ufffd dog"], max_tokens=50)
    assert tokens[0].tolist() == tokens[1].tolist()


def test_offsets_point_at_the_spelling(tokenizer: Tokenizer) -> None:
    text = "  The quick\u3000fox.\n今天 天气"
    for piece in tokenizer.pieces(text):
        spelling = piece.text.removeprefix("▁")
        assert not spelling or text[piece.start : piece.end] == spelling


def test_what_is_not_a_list_of_texts(each: Tokenizer) -> None:
    with pytest.raises(InputError, match="put it into a list"):
        each.count("text")
    with pytest.raises(InputError, match="text 1 must be a string; got int"):
        each.count(["a", 3])  # type: ignore[list-item]


def test_token_and_decode(each: Tokenizer) -> None:
    ids = each.encode(["the fox"], max_tokens=50)[0].tolist()
    assert each.decode(ids) == "the fox"
    assert each.token(ids[0]) in ("<s>", "[CLS]")
    with pytest.raises(InputError, match="is not in the vocabulary"):
        each.token(each.vocab + 1)


# ---- files ----------------------------------------------------------------------------------------------


def test_published_files_give_special_tokens_the_best_score(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    path.write_text(path.read_text().replace("-1000000.0", "0.0"))
    ids = Tokenizer.load(tmp_path).encode(["a <s> b"], max_tokens=50)[0].tolist()
    assert ids == tokenizer.encode(["a <s> b"], max_tokens=50)[0].tolist()
    assert tokenizer.cls_id not in ids[1:]


def test_saved_and_loaded_it_is_the_same(each: Tokenizer, tmp_path: Path) -> None:
    each.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == each.fingerprint()
    assert again.encode(CORPUS, max_tokens=99).ids.tolist() == each.encode(CORPUS, max_tokens=99).ids.tolist()


def test_another_vocabulary_has_another_fingerprint(tokenizer: Tokenizer) -> None:
    assert train_unigram(CORPUS[:3]).fingerprint() != tokenizer.fingerprint()


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer; expected one of tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\x0a\xff no model")
    with pytest.raises(CheckpointError, match=r"sentencepiece.bpe.model is not a sentencepiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


# ---- threads --------------------------------------------------------------------------------------------


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    """`tokenizers` raises "Already borrowed" when two threads meet in it (FlagEmbedding issue 1520)."""
    expected = tokenizer.encode(CORPUS, max_tokens=20).ids.tolist()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                assert tokenizer.encode(CORPUS, max_tokens=20).ids.tolist() == expected
                assert tokenizer.decode(expected[:5])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


# ---- parity ---------------------------------------------------------------------------------------------


def test_equal_to_sentencepiece(tmp_path: Path) -> None:
    """A model trained here and now, read without the package, gives the ids of the package."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra `train` is not installed")
    lines = CORPUS * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "spiece"),
        model_type="unigram",
        vocab_size=230,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "spiece.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer.load(tmp_path)
    random.seed(0)
    words = " ".join(CORPUS).split()
    texts = [*CORPUS, " a  b ", "ﬁne ½ ＡＢ", *(" ".join(random.sample(words, 9)) for _ in range(50))]
    offset = {theirs.unk_id(): ours.unk_id}  # XLM-R: ids of pieces are one higher
    tokens = ours.encode(texts, max_tokens=500)
    for i, text in enumerate(texts):
        assert tokens[i][1:-1].tolist() == [offset.get(id, id + 1) for id in theirs.encode(text)], text


@pytest.fixture(scope="module")
def xlmr() -> Tokenizer:
    path = SHARED / "xlm-roberta.sentencepiece.bpe.model"
    if not path.is_file():
        pytest.skip(f"{path} is not here; it is handed out beside the repository")
    return Tokenizer(xlmr_backend(read_unigram(path.read_bytes(), str(path))), name=str(path))


def test_published_ids_in_150_languages(xlmr: Tokenizer) -> None:
    cases = [json.loads(line) for line in (SHARED / "cases.jsonl").read_bytes().splitlines()]
    assert len(cases) == 200
    tokens = xlmr.encode([case["text"] for case in cases], max_tokens=8192)
    wrong = [case["text"] for i, case in enumerate(cases) if tokens[i].tolist() != case["ids"]]
    assert not wrong


def test_the_ids_of_xlmr(xlmr: Tokenizer) -> None:
    assert (xlmr.cls_id, xlmr.pad_id, xlmr.sep_id, xlmr.unk_id, xlmr.vocab) == (0, 1, 2, 3, 250_002)
    assert xlmr.token(250_001) == "<mask>"
    assert int(xlmr.count(["What is BGE M3?"])[0]) == 9  # reference/m3.md, section 3


def test_pieces_of_a_long_text_are_those_of_its_words(xlmr: Tokenizer) -> None:
    text = " ".join(CORPUS * 50)
    ids = np.array([piece.id for piece in xlmr.pieces(text)])
    words = xlmr.encode(text.split(), max_tokens=500)
    assert ids.tolist() == np.concatenate([words[i][1:-1] for i in range(len(words))]).tolist()
