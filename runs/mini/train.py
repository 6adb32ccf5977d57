"""Step 3: train threefold-mini jointly on the pairs. Resumable: run the same line again.

    python runs/mini/train.py --data ../shared/data --out build/mini --minutes 50

Contrastive on the three heads and on their sum, self-distillation, and the vectors of multilingual-e5-small with its
whole vocabulary as teacher, less what they say about the language (`teacher.py`): of each text, and of the English side
where a text has a translation (Reimers and Gurevych 2020, arXiv 2004.09813). Beside the labelled pairs there are crops
of texts in all languages (`crops.py`), questions in the language of their passage (`own.py`), and answers in another
language in batches of all languages (`mixed.py`); else questions about neighbouring passages share a batch
(`clusters.py`). Trained are the heads, attention, all biases and norms, and
the new rows of the word table: the rest keeps the four bits that it came in.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clusters import clustered
from corpus import SAME_MEANING, Pair, kept_back, read_pairs
from crops import crop_pairs
from mixed import MIXED, mixed_pairs
from own import own_language_pairs
from teacher import Teacher

from threefold.encoder.attention import Layout
from threefold.encoder.checkpoint import Model, load, save
from threefold.encoder.network import Batch
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.batches import PairTable, plan
from threefold.train.loop import Targets, Trainer, TrainSettings
from threefold.train.losses import LossWeights
from threefold.train.updates import Updates
from threefold.types import Floats, Ints, offsets_of

#: Passages as long as they come: a sparse head that has seen short ones alone gives long ones too much (docs/log.md).
MAX_QUERY, MAX_POSITIVE = 64, 448
BUDGET, WINDOW = 12_288, 4_096
#: Weight of the distance to the teacher. At 4, InfoNCE at temperature 0.02 drowns it (docs/log.md).
TEACHER = 25.0
#: Learning rates: the body knows much, the heads nothing.
BODY_LR, WORD_LR, HEAD_LR = 5e-5, 1e-3, 1e-3
#: The sparse head learns slowest.
SPARSE_LOSS = 2.0
#: Part of each source that one pass takes; sources that are not named are taken whole. A pass is longer than a run
#: has been: what counts is their proportion.
SHARES = {
    "sib200": 0.2, "gatitos": 0.15, "osm_presets": 0.2, "cldr": 0.3, "wikipedia_strings": 0.3, "www_l10n": 0.4,
    "common_voice_interface": 0.3, "ha_intents": 0.3, "bible": 0.15, "ms_azd": 0.3, "ms_edgeai": 0.3,
    "milvus_docs": 0.3, "fastapi_docs": 0.4, "asp_stories": 0.4, "jaquad": 0.25, "mlqa": 0.75, "mlqa_own": 6.0,
    "arcd": 1.5, "faquad": 1.5, "heq": 1.5,
    "cmrc2018": 2.0, "tydi": 2.5, "afriqa": 0.6, "mkqa": 0.3,
}  # fmt: skip

#: And of each kind.
KINDS = {"parallel": 0.4, "lexicon": 0.3, "command": 2.0, "crop": 0.5, MIXED: 0.7}
#: Kinds whose batches are made of neighbouring passages, and the passages clustered at a time.
CLUSTERED, AT_ONCE = {"qa", "heading", "crop"}, 8_000


class Aims:
    """The teacher's vectors of every text of a batch; a translation's are those of its English."""

    def __init__(self, pairs: list[Pair], teacher: Teacher) -> None:
        self.pairs, self.teacher = pairs, teacher

    def __call__(self, rows: Ints) -> tuple[Targets, Targets]:
        pairs = [self.pairs[int(row)] for row in rows]
        texts = [p.positive if translates(p, p.positive_lang) else p.query for p in pairs]
        texts += [p.query if translates(p, p.query_lang) else p.positive for p in pairs]
        vectors, places = self.teacher.vectors(texts), np.arange(len(pairs))
        return Targets(places, vectors[: len(pairs)]), Targets(places, vectors[len(pairs) :])


def translates(pair: Pair, language: str) -> bool:
    """Whether the side in this language is the English of the other."""
    return pair.kind in SAME_MEANING and language == "en" and pair.query_lang != pair.positive_lang


def source_of(pair: Pair) -> str:
    """Batches are of one source: file, kind and language, so that language does not give the answer away."""
    if pair.kind == MIXED:
        return f"{MIXED}/{MIXED}/xx"
    language = "en" if pair.positive_lang == "en" else "xx"
    if pair.kind in CLUSTERED and pair.source != "mlqa":  # its passages of all languages compete with each other
        language = pair.positive_lang
    return f"{pair.source}/{pair.kind}/{language}"


def build_table(pairs: list[Pair], tokenizer: Tokenizer) -> tuple[PairTable, list[str]]:
    keys = [source_of(pair) for pair in pairs]
    names = sorted(set(keys))
    number = {name: i for i, name in enumerate(names)}
    meanings: dict[str, int] = {}
    by_text: dict[str, int] = {}
    meaning = np.empty(len(pairs), np.int64)
    for i, pair in enumerate(pairs):
        group = meanings.setdefault(f"{pair.source}/{pair.group}", len(meanings))
        meaning[i] = by_text.setdefault(pair.positive, group)  # equal positives are one meaning, across files too
    table = PairTable(
        query=tokenised(tokenizer, [p.query for p in pairs], MAX_QUERY),
        positive=tokenised(tokenizer, [p.positive for p in pairs], MAX_POSITIVE),
        source=np.array([number[key] for key in keys]),
        meaning=meaning,
        teacher=np.array([p.positive_lang == "en" for p in pairs], np.int8),
        symmetric=np.array([p.kind in SAME_MEANING for p in pairs]),
    )
    return table, names


def make_plan(table: PairTable, names: list[str], words: Floats, seed: int) -> list[Ints]:
    """The batches of one pass, in random order."""
    sources = [name.split("/") for name in names]
    shares = {i: SHARES.get(source, 1.0) * KINDS.get(kind, 1.0) for i, (source, kind, _) in enumerate(sources)}
    near = {i: share for i, share in shares.items() if sources[i][1] in CLUSTERED}
    batches = plan(table, shares=shares | dict.fromkeys(near, 0.0), budget=BUDGET, window=WINDOW, seed=seed)
    rng = np.random.default_rng((seed, 1))
    sizes = table.query.lengths + table.positive.lengths
    for source, share in near.items():
        rows = np.flatnonzero(table.source == source)
        taken = rng.permutation(np.tile(rows, int(np.ceil(share))))[: round(share * len(rows))]
        for part in np.array_split(taken, max(1, len(taken) // AT_ONCE)):
            batches += clustered(table.positive, np.unique(part), sizes, BUDGET, words, rng)
    batches = [batch for batch in batches if len(batch) > 1]
    return [batches[i] for i in rng.permutation(len(batches))]


def prepared(data: Path, tokenizer: Tokenizer, words: Floats, seed: int) -> tuple[list[Pair], PairTable, list[Ints]]:
    """The pairs, their tokens, and the batches of one pass; `words` (vocab, d) say which passages are neighbours."""
    pairs = [p for p in read_pairs(data) if p.query.strip() and p.positive.strip() and not kept_back(p)]
    pairs += [*own_language_pairs(pairs)]
    pairs += [*mixed_pairs(pairs, seed), *crop_pairs(data, seed)]
    table, names = build_table(pairs, tokenizer)
    return pairs, table, make_plan(table, names, words, seed)


def first_tokens(batches: list[Ints], sizes: Ints, tokens: int) -> list[Ints]:
    """The beginning of a plan that has about so many tokens."""
    until = np.cumsum([int(sizes[batch].sum()) for batch in batches])
    return batches[: int(np.searchsorted(until, tokens)) + 1]


def tokenised(tokenizer: Tokenizer, texts: list[str], limit: int, block: int = 20_000) -> Tokens:
    """Ids of many texts; all at once would need ten times the memory."""
    parts = [tokenizer.encode(texts[i : i + block], max_tokens=limit) for i in range(0, len(texts), block)]
    ids, lengths, available = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "lengths", "available")
    )
    return Tokens(ids, offsets_of(lengths), available)


class FourBits(Trainer):
    """What is stored in four bits stays as it came: the feed-forward matrices, and the rows of E5's word table.

    new  (v,) 1 for the rows that E5 does not have, which are trained
    """

    def __init__(self, model: Model, *rest: Any, new: Floats, **named: Any) -> None:
        for layer in model.network.layers:
            layer.up.weight.requires_grad_(False)
            layer.down.weight.requires_grad_(False)
        super().__init__(model, *rest, **named)
        self.new = torch.from_numpy(new)[:, None]

    def gradients(self, rows: Ints) -> dict[str, float]:
        log = super().gradients(rows)
        gradient = self.model.network.words.weight.grad  # there, whatever the batch: every text has words
        assert gradient is not None
        gradient.mul_(self.new)
        return log


def finish(trainer: Updates, model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Train from the last checkpoint to the end of the plan, a line of JSON every few steps; then save."""
    print("resumed at step" if trainer.resume() else "started at step", trainer.step, flush=True)
    trainer.run(lambda line: print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True))
    save(model, folder)
    tokenizer.save(folder / "tokenizer.json")


@torch.no_grad()
def start_heads(model: Model, table: PairTable, seed: int) -> None:
    """The multi head begins as the main directions of token states about their mean, the sparse head near 0.1."""
    rows = np.random.default_rng(seed).choice(len(table), 1_000, replace=False)
    states = []
    for part in np.array_split(rows, 10):
        tokens = table.positive.take(part[np.argsort(table.positive.lengths[part], kind="stable")])
        layout = Layout.of(tokens.lengths)
        batch = Batch.of(tokens.ids, layout, model.config.network.first_position, torch.device("cpu"))
        states.append(model.network(batch))
    hidden = torch.cat(states)
    mean = hidden.mean(dim=0)
    _, _, directions = torch.linalg.svd(hidden - mean, full_matrices=False)
    head = model.heads.multi
    head.weight.copy_(directions[: head.out_features])
    head.bias.copy_(-head.weight @ mean)
    torch.nn.init.constant_(model.heads.sparse.bias, 0.1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--start", default="untrained", help="folder below --out with the weights to start from")
    options.add_argument("--stage", default="trained", help="folder below --out for checkpoints and the result")
    options.add_argument("--continued", action="store_true", help="the heads are trained already")
    options.add_argument("--teacher", type=float, default=TEACHER, help="weight of the distance to the teacher")
    options.add_argument("--tokens", type=int, default=30_000_000)
    options.add_argument("--minutes", type=float, default=0.0, help="end by the clock, if that comes first")
    options.add_argument("--seed", type=int, default=0, help="another seed for another run: other pairs come first")
    args = options.parse_args()
    tokenizer = Tokenizer.load(args.out / "untrained")
    model = load(args.out / args.start).model
    idf = np.load(args.out / "idf.npy")
    words = model.network.words.weight.detach().numpy() * idf[:, None]
    pairs, table, whole = prepared(args.data, tokenizer, words, args.seed)
    batches = first_tokens(whole, table.sizes, args.tokens)
    print(f"{len(pairs):,} pairs, {len(batches):,} of {len(whole):,} batches", flush=True)
    if not args.continued:
        start_heads(model, table, args.seed)
    settings = TrainSettings(
        minutes=args.minutes,
        body_lr=BODY_LR,
        word_lr=WORD_LR,
        head_lr=HEAD_LR,
        loss=LossWeights(sparse_loss=SPARSE_LOSS),
        teacher=args.teacher,
        idf_steps=0 if args.continued else 100,
        checkpoint_every=25,
        log_every=10,
        seed=args.seed,
    )
    trainer = FourBits(
        model, table, batches, settings, args.out / args.stage,
        special=tokenizer.special_ids, idf=idf, teacher=Aims(pairs, Teacher.load(args.out / "teacher")),
        new=np.load(args.out / "new.npy"),
    )  # fmt: skip
    finish(trainer, model, tokenizer, args.out / args.stage)


if __name__ == "__main__":
    main()
