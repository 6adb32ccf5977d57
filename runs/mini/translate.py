"""Step 3: foreign texts learn MiniLM's vector of their English translation. Resumable: run the same line again.

    python runs/mini/translate.py --data ../shared/data --out build/mini --steps 1000

Multilingual distillation (Reimers and Gurevych 2020, arXiv 2004.09813), and a contrastive part whose negatives are the
teacher's vectors of other sentences: of the batch, and of as many more as wanted, since the teacher does not change.
Only the foreign side is read by the student, so a pair costs half of what contrastive training on both sides costs;
English keeps its place by being among the texts.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from corpus import Pair, read_pairs
from teacher import MiniLM
from torch import Tensor
from torch.nn.functional import cross_entropy

from threefold.encoder.checkpoint import Model, load, save
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.losses import embedding_distillation
from threefold.train.packed import Packed
from threefold.train.parts import parameter_groups
from threefold.train.reader import Reader
from threefold.train.settings import TrainSettings
from threefold.train.updates import Updates
from threefold.train.world import World
from threefold.types import Ints

MAX_TOKENS = 192
#: Tokens of a batch.
BUDGET = 4_096
#: Of the loss: the distance to the teacher against the contrastive part, whose scores are divided by a temperature.
DISTANCE, TEMPERATURE = 10.0, 0.05
#: English sentences that a text is told from, beside those of its batch.
NEGATIVES = 2_048
#: Part of each source that one pass takes; sources that are not named are taken whole. `ENGLISH` texts per foreign one.
SHARES = {"gatitos": 0.4, "osm_presets": 0.4, "bible": 0.5, "ms_azd": 0.7, "ms_edgeai": 0.7, "sib200": 0.6}
ENGLISH = 0.12
#: Neighbouring sentences of a source and language are also joined, so many at a time, with their English: told
#: single sentences alone, the vectors of paragraphs get worse (docs/log.md, 2026-11-28).
JOINED = (2, 7)
SAME_MEANING = {"parallel", "lexicon"}


def held_out(english: str) -> bool:
    """A fiftieth of all English sentences, in no language trained on: `devset.py` asks for them."""
    return zlib.crc32(english.encode()) % 50 == 0


def kept_back(pair: Pair) -> bool:
    """Whether a pair has one of these sentences."""
    return pair.kind in SAME_MEANING and any(
        held_out(text) for text, language in ((pair.query, pair.query_lang), (pair.positive, pair.positive_lang))
        if language == "en"
    )  # fmt: skip


def translated(pairs: list[Pair], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Texts and their English: foreign sentences, paragraphs made of them, and a few that are English themselves."""
    found: list[tuple[str, str]] = []
    neighbours: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for pair in pairs:
        if pair.kind not in SAME_MEANING or "en" not in (pair.query_lang, pair.positive_lang):
            continue
        swapped = pair.query_lang == "en"
        both = (pair.positive, pair.query) if swapped else (pair.query, pair.positive)  # foreign, English
        language = pair.positive_lang if swapped else pair.query_lang
        if not held_out(both[1]) and rng.random() < SHARES.get(pair.source, 1.0):
            found.append(both)
            if pair.kind == "parallel":
                neighbours[pair.source, language].append(both)
    for sentences in neighbours.values():
        found += paragraphs(sentences, rng)
    own = rng.choice(sorted({english for _, english in found}), round(ENGLISH * len(found)))
    found += zip(own, own, strict=True)
    return [text for text, _ in found], [english for _, english in found]


def paragraphs(sentences: Sequence[tuple[str, str]], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Runs of `JOINED` sentences (foreign, English), each sentence in one of them."""
    ends = np.cumsum(rng.integers(*JOINED, size=len(sentences)))
    for start, end in pairwise([0, *ends[ends < len(sentences)].tolist(), len(sentences)]):
        foreign, english = zip(*sentences[start:end], strict=True)
        yield " ".join(foreign), " ".join(english)


class Translations:
    """Texts in batches, and what the teacher makes of their English.

    plan  rows of the texts that each batch takes; only these have vectors
    """

    def __init__(self, pairs: list[Pair], tokenizer: Tokenizer, seed: int, batches: int) -> None:
        texts, english = translated(pairs, np.random.default_rng(seed))
        self.texts = tokenised(tokenizer, texts, MAX_TOKENS)
        whole = batches_of(self.texts.lengths, seed)
        self.seed, self.plan = seed, whole[:batches]
        print(f"{len(texts):,} texts, {len(whole):,} batches of which {len(self.plan):,} are trained on", flush=True)
        used = {english[row] for batch in self.plan for row in batch.tolist()}
        place = {text: i for i, text in enumerate(sorted(used))}
        print(f"the teacher reads {len(place):,} English texts", flush=True)
        self.theirs = torch.from_numpy(MiniLM().vectors(list(place)))
        self.place = torch.tensor([place.get(text, -1) for text in english])

    def gradients(self, reader: Reader, rows: Ints, step: int) -> dict[str, float]:
        """Adds the gradients of one batch to what the parameters have; returns its losses."""
        rows = rows[np.argsort(self.texts.lengths[rows], kind="stable")]
        tokens = self.texts.take(rows)
        ours = reader(Packed(tokens.ids, tokens.lengths)).dense
        aims = self.place[torch.from_numpy(rows)]
        others = np.random.default_rng((self.seed, step)).choice(len(self.theirs), NEGATIVES)
        candidates = torch.unique(torch.cat([aims, torch.from_numpy(others)]))
        distance = embedding_distillation(ours, self.theirs[aims])
        scores = ours @ self.theirs[candidates].T
        contrast: Tensor = cross_entropy(scores / TEMPERATURE, torch.searchsorted(candidates, aims))
        total = DISTANCE * distance + contrast
        total.backward()
        return {"total": total.item(), "distance": distance.item(), "contrast": contrast.item()}


class Translator(Updates):
    """A student that reads texts and is told the teacher's vectors of their English."""

    def __init__(self, model: Model, translations: Translations, settings: TrainSettings, folder: Path) -> None:
        self.translations = translations
        self.reader = Reader(model, (), ("dense",), settings.precision)
        groups = parameter_groups(model, settings)
        lengths = translations.texts.lengths
        super().__init__(
            {"model": model}, groups, translations.plan, lengths, settings, folder, World(), self.reader.dtype
        )

    def gradients(self, rows: Ints) -> dict[str, float]:
        return self.translations.gradients(self.reader, rows, self.step)


def batches_of(lengths: Ints, seed: int) -> list[Ints]:
    """Random batches of about `BUDGET` tokens each."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    number = np.cumsum(lengths[order]) // BUDGET
    return np.split(order, np.flatnonzero(np.diff(number)) + 1)


def tokenised(tokenizer: Tokenizer, texts: list[str], limit: int, block: int = 20_000) -> Tokens:
    """Ids of many texts; all at once would need ten times the memory."""
    parts = [tokenizer.encode(texts[i : i + block], max_tokens=limit) for i in range(0, len(texts), block)]
    lengths = np.concatenate([part.lengths for part in parts])
    ids, available = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "available"))
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), available)


def finish(trainer: Updates, model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Train from the last checkpoint to the end of the plan, a line of JSON every few steps; then save."""
    print("resumed at step" if trainer.resume() else "started at step", trainer.step, flush=True)
    trainer.run(lambda line: print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True))
    save(model, folder)
    tokenizer.save(folder / "tokenizer.json")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--start", default="untrained", help="folder below --out with the weights to start from")
    options.add_argument("--stage", default="translated", help="folder below --out for checkpoints and the result")
    options.add_argument("--steps", type=int, default=1_000)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    tokenizer = Tokenizer.load(args.out / "untrained")
    translations = Translations(list(read_pairs(args.data)), tokenizer, args.seed, args.steps)
    settings = TrainSettings(body_lr=1e-4, word_lr=2e-3, checkpoint_every=50, log_every=10, seed=args.seed)
    model = load(args.out / args.start).model
    trainer = Translator(model, translations, settings, args.out / args.stage)
    finish(trainer, model, tokenizer, args.out / args.stage)


if __name__ == "__main__":
    main()
