from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeEncoder

from threefold.errors import ConfigError, DataError, InputError, NumericalError, ShapeError
from threefold.retrieve.pairs import compare_texts
from threefold.score import Weights
from threefold.train.examples import Example
from threefold.train.judge import ModeJudge, distil, judged
from threefold.train.mine import Margin, MineSettings, mine
from threefold.train.pool import Pool, read_corpus
from threefold.types import Floats

WORDS = ["fox", "dog", "park", "box", "forward", "sentence", "trained", "Fuchs", "Hund", "погода", "公园", "disk"]


def examples(n: int = 12) -> list[Example]:
    """Each positive begins with the words of its query."""
    return [
        Example(f"{WORDS[i]} {WORDS[(i + 1) % 12]}", (f"{WORDS[i]} {WORDS[(i + 1) % 12]} {WORDS[(i + 5) % 12]}",))
        for i in range(n)
    ]


def everything(mode: str = "dense", **more: Any) -> MineSettings:
    return replace(MineSettings(mode, (1, 100), 100, "hardest"), **more)


def by_hand(encoder: FakeEncoder, example: Example, texts: Sequence[str]) -> list[str]:
    """Texts by the inner product of dense vectors, best first."""
    query, docs = encoder.encode([example.asked]).dense, encoder.encode(texts).dense
    assert query is not None
    assert docs is not None
    return [texts[i] for i in np.argsort(-(docs @ query[0]), kind="stable")]


# ---- the run ---------------------------------------------------------------------------------------------


def test_negatives_are_the_other_texts_by_rank(encoder: FakeEncoder) -> None:
    data = examples()
    mined = mine(data, encoder, everything())
    for before, after in zip(data, mined.examples, strict=True):
        others = [one.positives[0] for one in data if one is not before]
        assert list(after.negatives) == by_hand(encoder, before, others)
        assert (after.query, after.positives) == (before.query, before.positives)
    assert mined.counts["negatives"] == 12 * 11
    assert mined.counts["texts in the pool"] == 12


def test_the_window_counts_ranks_from_one_among_what_is_allowed(encoder: FakeEncoder) -> None:
    data = examples()
    whole = mine(data, encoder, everything()).examples
    window = mine(data, encoder, everything(ranks=(3, 5))).examples
    assert [one.negatives for one in window] == [one.negatives[2:5] for one in whole]
    beyond = mine(data, encoder, everything(ranks=(50, 60)))
    assert beyond.counts["negatives"] == 0
    assert beyond.counts["examples with fewer negatives than wanted"] == 12


def test_a_random_pick_is_of_the_window_seeded_and_in_order(encoder: FakeEncoder) -> None:
    data = examples()
    whole = [one.negatives[1:9] for one in mine(data, encoder, everything()).examples]
    picks = [
        [one.negatives for one in mine(data, encoder, MineSettings("dense", (2, 9), 3, seed=seed)).examples]
        for seed in (0, 0, 1)
    ]
    assert picks[0] == picks[1] != picks[2]
    for window, pick in zip(whole, picks[0], strict=True):
        assert len(pick) == 3
        assert list(pick) == [text for text in window if text in pick]


@pytest.mark.parametrize(
    "mode", ["sparse", "multi", "dense+sparse", "hybrid", "dense@4", "bm25", "bm25-words", "rrf", "dbsf"]
)
def test_every_mode_finds_others_and_never_the_answer(encoder: FakeEncoder, mode: str) -> None:
    mined = mine(examples(), encoder, everything(mode))
    assert mined.counts["negatives"] >= 12
    for one in mined.examples:
        assert not set(one.negatives) & set(one.positives)
        assert len(set(one.negatives)) == len(one.negatives)


def test_a_corpus_adds_texts_and_prompts_are_read(encoder: FakeEncoder) -> None:
    data = [Example("fox", ("fox dog",), prompt="park box: "), Example("disk", ("disk погода",))]
    mined = mine(data, encoder, everything(), corpus=["park box", "Hund"]).examples
    assert list(mined[0].negatives) == by_hand(encoder, data[0], ["disk погода", "park box", "Hund"])
    assert mined[0].prompt == "park box: "


def test_what_was_cut_is_counted_once(encoder: FakeEncoder) -> None:
    """Also where the same texts are read again behind a prompt."""
    long = " ".join(WORDS * 3)
    data = [
        *examples(),
        Example(long, (f"{long} disk",)),
        Example("fox", ("dog",), prompt="box: ", kind="symmetric_sts"),
    ]
    counts = mine(data, encoder, everything(), max_tokens=30, corpus=[f"{long} fox", "park"]).counts
    assert (counts["documents truncated"], counts["texts in the pool"]) == (2, 16)


def test_the_first_ten_ranks_are_left_out_unless_it_is_said(encoder: FakeEncoder) -> None:
    data = examples()
    whole = mine(data, encoder, everything()).examples
    window = mine(data, encoder, MineSettings("dense")).examples
    assert [one.negatives for one in window] == [one.negatives[10:] for one in whole]


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_the_prompt_of_symmetric_types_is_read_in_front_of_the_texts_too(encoder: FakeEncoder, mode: str) -> None:
    """As training reads them, and so as an embedding model that distils scores them."""
    words = [Example(one.query, one.positives, prompt="forward park: ", kind="symmetric_sts") for one in examples(4)]
    data = [*words[:2], *examples()[4:8], *words[2:]]
    settings = everything(mode, margin=Margin(absolute=-9.0))
    mined = mine(data, encoder, settings, corpus=["box", "Hund"], scored=True).examples
    assert [one.query for one in mined] == [one.query for one in data]
    by_teacher = list(distil(mined, ModeJudge(encoder, mode), prompted=True))
    assert len(mined[0].negatives) >= 8
    for one, other in zip(mined, by_teacher, strict=True):
        assert one.positive_scores == pytest.approx(other.positive_scores, abs=1e-5)
        assert one.negative_scores == pytest.approx(other.negative_scores, abs=1e-5)
        assert sorted(one.negative_scores, reverse=True) == pytest.approx(list(one.negative_scores), abs=1e-5)


# ---- what must not be a negative -------------------------------------------------------------------------


def test_barred_texts_by_hand() -> None:
    data = [
        Example("fox", ("The fox.",), group="1", source="a"),
        Example("Fuchs", ("Der Fuchs.",), group="1", source="a"),
        Example("dog", ("A dog.",), group="1", source="b"),
        Example("fox", ("Another fox.",), ("THE  ﬁsh",)),
        Example("the fish", ("Fish.",)),
    ]
    pool = Pool.of(data, ["the fox.", "box"])
    names = {number: text for text, number in pool.texts.items()}
    barred = {query: {names[i] for i in pool.barred[number]} for query, number in pool.queries.items()}
    assert barred == {
        "fox": {"The fox.", "the fox.", "Der Fuchs.", "Another fox."},
        "Fuchs": {"Der Fuchs.", "The fox.", "the fox."},  # a variant of an answer of the group
        "dog": {"A dog."},
        "the fish": {"Fish.", "THE  ﬁsh"},
    }
    assert {names[i] for i in pool.answers[pool.queries["fox"]]} == {"The fox.", "Another fox."}


def test_negatives_that_are_there_stay_in_front_unless_replaced(encoder: FakeEncoder) -> None:
    data = examples()
    data[0] = Example(data[0].query, data[0].positives, ("own", data[5].positives[0]), (1.0,), (0.5, 0.25))
    kept = mine(data, encoder, everything(negatives=3))
    assert kept.examples[0].negatives[:2] == data[0].negatives
    assert len(kept.examples[0].negatives) == len(set(kept.examples[0].negatives)) == 5
    assert kept.examples[0].positive_scores == kept.examples[0].negative_scores == ()
    assert kept.counts["examples whose old scores were left out"] == 1
    assert len(mine(data, encoder, everything(negatives=3, keep=False)).examples[0].negatives) == 3


# ---- margins ---------------------------------------------------------------------------------------------


def test_margins_by_hand() -> None:
    assert Margin.parse("0.1").limit(0.5) == pytest.approx(0.4)
    assert Margin.parse(" 5% ").limit(0.8) == pytest.approx(0.76)  # TopK-PercPos at 95 %
    assert Margin.parse("5%").limit(-2.0) == pytest.approx(-2.1)  # below, though the score is negative
    assert Margin().limit(3.0) == 3.0
    for text in ("much", "nan", "inf%"):
        with pytest.raises(ConfigError, match=f"margin '{text}'"):
            Margin.parse(text)


@pytest.mark.parametrize("mode", ["dense", "sparse", "multi", "dense+sparse", "hybrid", "dense@4"])
def test_with_a_margin_every_negative_is_below_the_worst_positive(encoder: FakeEncoder, mode: str) -> None:
    data = [Example(one.query, (*one.positives, "Hund disk")) for one in examples()]
    judge = ModeJudge(encoder, mode)
    for margin in (Margin(), Margin(relative=0.5), Margin(absolute=0.3)):
        mined = mine(data, encoder, everything(mode, margin=margin)).examples
        free = mine(data, encoder, everything(mode)).examples
        for one, all_of_them in zip(mined, free, strict=True):
            limit = margin.limit(float(judge([(one.query, text) for text in one.positives]).min()))
            scores = judge([(one.query, text) for text in all_of_them.negatives])
            expected = [t for t, score in zip(all_of_them.negatives, scores, strict=True) if score < limit - 1e-6]
            assert [text for text in one.negatives if text in expected] == expected
            assert len(one.negatives) - len(expected) <= int((abs(scores - limit) <= 1e-6).sum())


def test_a_margin_for_bm25(encoder: FakeEncoder) -> None:
    data = [Example("fox dog", ("fox",)), Example("park", ("park",))]
    found = [
        mine(data, encoder, everything("bm25", margin=margin), corpus=["dog fox", "box"]).examples[0].negatives
        for margin in (None, Margin())
    ]
    assert found[0][0] == "dog fox"  # two shared words beat the positive, which has one
    assert found[1] == found[0][1:]


@pytest.mark.parametrize("mode", ["rrf", "dbsf", "bm25-words"])
def test_modes_without_scores_have_no_margin(mode: str) -> None:
    with pytest.raises(ConfigError, match="no score to put a margin on"):
        MineSettings(mode=mode, margin=Margin())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (0, 5)}, r"got \(0, 5\)"),
        ({"ranks": (5, 4)}, r"got \(5, 4\)"),
        ({"ranks": (5,)}, "a first and a last rank"),
        ({"negatives": 0}, "got 0"),
        ({"seed": -1}, "seed must be 0 or more; got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineSettings(**options)


def test_nothing_to_mine_for(encoder: FakeEncoder) -> None:
    with pytest.raises(InputError, match="no examples"):
        mine([], encoder)
    with pytest.raises(ConfigError, match="unknown mode 'best'"):
        mine(examples(), encoder, everything("best"))


# ---- teachers --------------------------------------------------------------------------------------------


def test_a_teacher_refuses_what_is_as_good_as_the_positive(encoder: FakeEncoder) -> None:
    data = examples()
    read: list[tuple[str, str]] = []

    def teacher(pairs: Sequence[tuple[str, str]]) -> Floats:
        """The length of the text."""
        read.extend(pairs)
        return np.array([len(text) for _, text in pairs], np.float32)

    settings = everything(negatives=2, teacher_margin=Margin(absolute=1.0))
    mined = mine(data, encoder, settings, teacher=teacher)
    free = mine(data, encoder, everything()).examples
    for one, all_of_them in zip(mined.examples, free, strict=True):
        shorter = [t for t in all_of_them.negatives[:6] if len(t) < len(one.positives[0]) - 1]
        assert list(one.negatives) == shorter[:2]
    assert mined.counts["candidates that the teacher refused"] > 0
    assert len(read) == 12 * (1 + 3 * 2)  # it reads at most three candidates for every negative


def test_the_score_of_a_mode_is_that_of_two_texts_side_by_side(encoder: FakeEncoder) -> None:
    pairs = [("fox dog", "dog park box"), ("Hund", "Fuchs"), ("fox dog", "dog"), ("fox dog", "dog park box")]
    for mode, weights in (
        ("hybrid", Weights(1, 0.5, 2)),
        ("dense+sparse", Weights(1, 0.5, 0)),
        ("multi", Weights(0, 0, 1)),
    ):
        expected = [compare_texts(encoder, *pair, weights=weights).fused for pair in pairs]
        own = None if mode == "multi" else weights  # that mode adds nothing
        assert ModeJudge(encoder, mode, own)(pairs).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["bm25", "rrf", "bm25-words"])
def test_what_is_no_score_of_a_pair_is_no_teacher(encoder: FakeEncoder, mode: str) -> None:
    with pytest.raises(ConfigError, match="does not score a query with one text"):
        ModeJudge(encoder, mode)


def test_distil_scores_every_text_of_every_example_in_order() -> None:
    data = [Example("q" * i, ("a" * i, "b"), ("c",) * (i % 3), prompt="P") for i in range(1, 300)]
    calls: list[int] = []

    def teacher(pairs: Sequence[tuple[str, str]]) -> Floats:
        return np.array([len(query) + len(text) / 1000 for query, text in pairs])

    done = list(distil(data, teacher, progress=calls.append))
    for i, one in enumerate(done, start=1):
        assert one.positive_scores == pytest.approx((i + i / 1000, i + 0.001))
        assert one.negative_scores == pytest.approx((i + 0.001,) * (i % 3))
    assert calls == [256, 299]
    prompted = next(distil(data, teacher, prompted=True))
    assert prompted.positive_scores[0] == pytest.approx(1 + done[0].positive_scores[0])


def test_a_teacher_that_says_nonsense_is_named() -> None:
    with pytest.raises(ShapeError, match=r"shape \(1, 1\) for 1 pairs"):
        judged(lambda pairs: np.zeros((1, 1)), [("q", "a")])
    with pytest.raises(NumericalError, match="gave nan for the query 'q2'"):
        judged(lambda pairs: np.array([1, np.nan]), [("q1", "a"), ("q2", "b")])


# ---- a corpus --------------------------------------------------------------------------------------------


def test_corpora(tmp_path: Path) -> None:
    rows = [{"_id": "1", "title": "T", "text": "a"}, {"_id": "2", "text": "b"}, {"text": " "}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert list(read_corpus(tmp_path)) == list(read_corpus(tmp_path / "corpus.jsonl")) == ["T\na", "b"]
    assert list(read_corpus(tmp_path / "lines.txt")) == ["one", "two"]
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: expected \"text\""):
        list(read_corpus(tmp_path / "bad.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        list(read_corpus(tmp_path / "no.jsonl"))
