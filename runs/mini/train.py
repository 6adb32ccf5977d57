"""Step 4: train threefold-mini jointly on the pairs. Resumable: run the same line again.

    python runs/mini/train.py --data ../shared/data --out build/mini --tokens 2000000

Contrastive on the three heads and on their sum, self-distillation, and MiniLM's vectors as teacher wherever a text is
English or has an English translation (Reimers and Gurevych 2020). Beside the labelled pairs there are crops of texts
in all languages (`crops.py`); questions about neighbouring passages share a batch (`clusters.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from clusters import clustered
from corpus import Pair, read_pairs
from crops import crop_pairs
from teacher import MiniLM
from translate import SAME_MEANING, Translations, finish, kept_back, tokenised

from threefold.encoder.attention import Layout
from threefold.encoder.checkpoint import Model, load
from threefold.encoder.network import Batch
from threefold.text.tokenizer import Tokenizer
from threefold.train.batches import PairTable, plan
from threefold.train.loop import Targets, Trainer, TrainSettings
from threefold.train.losses import LossWeights
from threefold.train.reader import Reader
from threefold.types import Floats, Ints

MAX_QUERY, MAX_POSITIVE = 64, 192
BUDGET, WINDOW = 12_288, 4_096
#: Weight of the distance to the teacher. At 4, InfoNCE at temperature 0.02 drowns it (docs/log.md).
TEACHER = 25.0
SPARSE_LOSS = 1.0
#: Part of each source that one pass takes; sources that are not named are taken whole. A pass is longer than a run
#: has been: what counts is their proportion.
SHARES = {
    "sib200": 0.2, "gatitos": 0.15, "osm_presets": 0.2, "cldr": 0.3, "wikipedia_strings": 0.3, "www_l10n": 0.4,
    "common_voice_interface": 0.3, "ha_intents": 0.3, "bible": 0.15, "ms_azd": 0.3, "ms_edgeai": 0.3,
    "milvus_docs": 0.3, "fastapi_docs": 0.4, "asp_stories": 0.4, "jaquad": 0.25, "mlqa": 1.5,
    "arcd": 1.5, "faquad": 1.5, "heq": 1.5,
    "cmrc2018": 2.0, "tydi": 1.5, "afriqa": 0.6, "mkqa": 0.3,
}  # fmt: skip

#: And of each kind: `translate.py` has read the translations before.
KINDS = {"parallel": 0.5, "lexicon": 0.3}
#: Kinds whose batches are made of neighbouring passages, and the passages clustered at a time.
CLUSTERED, AT_ONCE = {"qa", "heading", "crop"}, 8_000


class Both(Trainer):
    """Pairs, and with each batch of them one of translations: joint training alone unlearns these (docs/log.md)."""

    translations: Translations | None = None

    def go_on_with(self, translations: Translations) -> None:
        self.translations = translations
        self.dense = Reader(self.model, (), ("dense",), self.settings.precision)

    def gradients(self, rows: Ints) -> dict[str, float]:
        log = super().gradients(rows)
        if self.translations is None:
            return log
        plan = self.translations.plan
        more = self.translations.gradients(self.dense, plan[self.step % len(plan)], self.step)
        return log | more | {"total": log["total"] + more["total"]}


class Aims:
    """MiniLM's vectors for the English texts of a batch, and for the translations of English texts."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.teacher, self.pairs = MiniLM(), pairs

    def __call__(self, rows: Ints) -> tuple[Targets, Targets]:
        queries, positives = {}, {}
        for place, row in enumerate(rows):
            pair = self.pairs[int(row)]
            if pair.positive_lang == "en":
                positives[place] = pair.positive
                if pair.kind in SAME_MEANING:
                    queries[place] = pair.positive
            if pair.query_lang == "en":
                queries[place] = pair.query
                if pair.kind in SAME_MEANING and pair.positive_lang != "en":
                    positives[place] = pair.query
        return self._targets(queries), self._targets(positives)

    def _targets(self, texts: dict[int, str]) -> Targets:
        return Targets(np.array(list(texts), np.int64), self.teacher.vectors(list(texts.values())))


def source_of(pair: Pair) -> str:
    """Batches are of one source: file, kind and language, so that language does not give the answer away."""
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
    pairs += crop_pairs(data, seed)
    table, names = build_table(pairs, tokenizer)
    return pairs, table, make_plan(table, names, words, seed)


def first_tokens(batches: list[Ints], sizes: Ints, tokens: int) -> list[Ints]:
    """The beginning of a plan that has about so many tokens."""
    until = np.cumsum([int(sizes[batch].sum()) for batch in batches])
    return batches[: int(np.searchsorted(until, tokens)) + 1]


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
    options.add_argument("--start", default="translated", help="folder below --out with the weights to start from")
    options.add_argument("--stage", default="trained", help="folder below --out for checkpoints and the result")
    options.add_argument("--continued", action="store_true", help="the heads are trained already")
    options.add_argument("--teacher", type=float, default=TEACHER, help="weight of the distance to the teacher")
    options.add_argument("--translations", type=int, default=0, help="batches of translations to go on learning")
    options.add_argument("--tokens", type=int, default=2_000_000)
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
        loss=LossWeights(sparse_loss=SPARSE_LOSS),
        teacher=args.teacher,
        idf_steps=0 if args.continued else 100,
        checkpoint_every=25,
        log_every=10,
        seed=args.seed,
    )
    trainer = Both(
        model, table, batches, settings, args.out / args.stage,
        special=tokenizer.special_ids, idf=idf, teacher=Aims(pairs),
    )  # fmt: skip
    if args.translations:
        trainer.go_on_with(Translations(pairs, tokenizer, args.seed, args.translations))
    finish(trainer, model, tokenizer, args.out / args.stage)


if __name__ == "__main__":
    main()
