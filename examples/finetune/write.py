"""Write the data of the guide: an invented trade with its own words. Every text is made of parts written by hand.

    python examples/finetune/write.py

The trade is tide milling on an invented coast. Its manual is in the millers' words ("If the huskin is thralled ...");
people who ask do not know them ("the brake band is stuck and does not move"). Over half of the entries
share a word or two with their question, as would happen. 26 parts and 24 troubles give 624 entries of the manual. 500
become training pairs, and 124 are held out: their queries and their texts are in no training pair, but every part and
every trouble is. Chosen with a fixed seed.

    train.jsonl            {"query", "pos"}: 500
    corpus.jsonl           all 624 entries, in BEIR's form
    queries.jsonl          the 124 questions that are held out
    qrels/test.tsv         which entry answers which
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent

#: What people say, what millers say.
PARTS = [
    ("sluice valve", "grellock of the sluice"),
    ("main water wheel", "old marrow"),
    ("drive shaft", "throom"),
    ("grain hopper", "grain dunnet"),
    ("upper millstone", "skarn stone"),
    ("lower millstone", "beddle stone"),
    ("brake band", "huskin"),
    ("oil pump", "oil wimmer"),
    ("pressure gauge", "sundglass"),
    ("tide gate", "varrow"),
    ("gate hinge", "knapple of the gate"),
    ("drain pipe", "lurch-run"),
    ("bucket chain", "bucket clatterline"),
    ("gear box", "toothhouse"),
    ("belt tensioner", "belt strake"),
    ("dust filter", "mothcloth"),
    ("flour chute", "flour paleslide"),
    ("emergency stop lever", "quench-arm"),
    ("control lamp", "wick-eye lamp"),
    ("rope winch", "hoddle"),
    ("air vent", "soughing vent"),
    ("bearing cap", "pellen"),
    ("water filter", "eelnet"),
    ("foot bridge", "tern-plank"),
    ("storage silo", "barrowmouth"),
    ("cooling jacket", "fenwrap"),
]

#: What people see, what millers write, and what they do about it.
TROUBLES = [
    ("leaks at low pressure", "leaks at half-sund", "Repack the collar with tallowed brine-rope until no drop falls."),
    ("makes a grinding noise", "sings a grinding corn", "Stop at slack, lift it a thumb and listen for shot grit."),
    ("is stuck and does not move", "is thralled", "Never force it. Warm it for one bell and rock it loose with a fid."),
    ("gets too hot", "runs hot as ember", "Halve the feed, wet the fleece and wait until it is cold."),
    ("shakes at high speed", "shivers past nine turns", "Shim the lee side until a full cup stands on it."),
    ("is rusty", "wears the fox", "Scour it with sharp sand down to bright iron and give it two coats of blackwash."),
    ("is frozen in winter", "is frozen white", "Lay on peat bags from dusk and salt the lip against the ice."),
    ("has a crack", "shows a hair crack", "Chalk both ends; if the line grows by morning, condemn it."),
    ("came loose", "has slipped its vow", "Seat it tight again with three oak wedges, and mark the day on each."),
    ("is blocked by mud", "is slaked with mud", "Flush the dirt out on the ebb with the back race open."),
    ("smells of burning", "breathes pitch", "Quench first, ask after. Then renew the felt."),
    ("is too slow", "plods", "Count the turns over one glass and dress the faces if they are under forty."),
    ("needs its yearly inspection", "is due its candlemas", "Two hands sign the slate, one from another mill."),
    ("must be replaced", "goes to the hill", "Draw the spare from the loft and burn its number into the lintel."),
    ("was damaged by a storm", "took storm and gale", "Rope it off, and send the slate to the reeve before new moon."),
    ("is covered with algae", "is greenbearded", "Scrape the weed downwards, lime it, and leave it dry over one neap."),
    ("reads wrong values", "tells lies", "Set it against the reeve's own, at high and at low water."),
    ("stops without a reason", "stops mute", "Look to the weed pin: nine times of ten it has sheared."),
    ("should be cleaned after work", "wants its evening grace", "Brush, then oil, then cloth, never the other way."),
    ("lets in water during a flood", "drinks flood water", "Drop the boards to the third notch and pump through."),
    ("is attacked by insects", "has lodgers", "Smoke the beetles out with bog myrtle for a day and a night."),
    ("is hard to open by hand", "sits proud", "Ease it with goose fat; a straight pull, no more than two men."),
    ("wears out on one side", "wears to lee", "Turn it end for end at the quarter, and write down by how much."),
    ("was installed upside down", "was hung moonwise", "Take it out whole. The maker's notch looks to the sea."),
]  # fmt: skip

QUESTIONS = [
    "why is it that the {part} {trouble}?",
    "the {part} {trouble}, what should I do",
    "what to do when the {part} {trouble}",
    "help, our {part} {trouble}",
    "{part} {trouble}",
]
ENTRIES = [
    "If the {word} {sign}: {advice}",
    "The {word} {sign}. {advice}",
    "When a {word} {sign}, the rule of the house holds. {advice}",
]

#: Entries that are held out.
HELD_OUT = 124


def main() -> None:
    rng = random.Random(7)
    pairs = [(part, trouble) for part in range(len(PARTS)) for trouble in range(len(TROUBLES))]
    rng.shuffle(pairs)
    corpus, train, queries, judged = [], [], [], []
    for number, (p, t) in enumerate(pairs):
        part, word = PARTS[p]
        trouble, sign, advice = TROUBLES[t]
        query = rng.choice(QUESTIONS).format(part=part, trouble=trouble)
        entry = rng.choice(ENTRIES).format(word=word, sign=sign, advice=advice)
        corpus.append({"_id": f"entry-{number}", "title": "", "text": entry})
        if number < HELD_OUT:
            queries.append({"_id": f"q-{number}", "text": query})
            judged.append(f"q-{number}\tentry-{number}\t1")
        else:
            train.append({"query": query, "pos": [entry]})
    corpus.sort(key=lambda row: row["text"])
    for name, rows in (("train", train), ("corpus", corpus), ("queries", queries)):
        write(HERE / f"{name}.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    (HERE / "qrels").mkdir(exist_ok=True)
    write(HERE / "qrels/test.tsv", ["query-id\tcorpus-id\tscore", *judged])


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
