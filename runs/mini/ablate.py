"""What the parts of joint training are worth: the recipe of `train.py` less one part, from one start, same batches.

    python runs/mini/ablate.py --data ../shared/data --start untrained --steps 80
    for name in build/mini/ablations/*; do
        threefold evaluate DATA/bench/small.tar.xz -m $name --modes dense,sparse,multi,hybrid \
            --measures nDCG@10,accuracy@1 --averages --save results/ablations/$(basename $name).json
        threefold evaluate build/mini/dev/{natural/en,mixed/all,mlqa/vi-de} --split dev -m $name \
            --modes dense,sparse,multi,hybrid --measures nDCG@10 --save results/ablations/$(basename $name)-dev.json
    done

    joint                   three heads, their sum, self-distillation, E5's vectors without what they say of languages
    no-self-distillation    no head learns from the sum of all
    no-teacher              nobody is told the vectors of E5
    teacher-with-languages  E5's vectors as they are
    no-mixed-batches        no batch in which passages of all languages compete; the next ones take their place
    short-passages          passages are cut to 192 tokens

Resumable: run the same line again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from corpus import Pair
from mixed import MIXED
from teacher import WIDTH, Teacher

from threefold.encoder.checkpoint import load
from threefold.text.tokenizer import Tokenizer
from threefold.train.loop import TrainSettings
from threefold.train.losses import LossWeights
from threefold.types import Ints
from train import BODY_LR, MAX_POSITIVE, SPARSE_LOSS, TEACHER, Aims, FourBits, finish, prepared, start_heads, tokenised

WHOLE = TrainSettings(
    loss=LossWeights(sparse_loss=SPARSE_LOSS),
    teacher=TEACHER,
    body_lr=BODY_LR,
    idf_steps=25,
    checkpoint_every=25,
    log_every=10,
    seed=4,
)


@dataclass(frozen=True, slots=True)
class Variant:
    """The recipe, or the recipe less one part.

    neutral  the teacher's vectors come without the directions of languages
    mixed    batches of all languages take part
    longest  tokens of a passage
    """

    settings: TrainSettings = WHOLE
    neutral: bool = True
    mixed: bool = True
    longest: int = MAX_POSITIVE

    def plan(self, pairs: list[Pair], batches: list[Ints]) -> list[Ints]:
        """The batches that take part."""
        return [batch for batch in batches if self.mixed or pairs[int(batch[0])].kind != MIXED]


VARIANTS = {
    "joint": Variant(),
    "no-self-distillation": Variant(replace(WHOLE, loss=replace(WHOLE.loss, distil=0.0))),
    "no-teacher": Variant(replace(WHOLE, teacher=0.0)),
    "teacher-with-languages": Variant(neutral=False),
    "no-mixed-batches": Variant(mixed=False),
    "short-passages": Variant(longest=192),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--start", default="untrained", help="folder below --out with the weights to start from")
    options.add_argument("--steps", type=int, default=80)
    args = options.parse_args()
    tokenizer, idf = Tokenizer.load(args.out / "untrained"), np.load(args.out / "idf.npy")
    words = load(args.out / args.start).model.network.words.weight.detach().numpy() * idf[:, None]
    pairs, table, whole = prepared(args.data, tokenizer, words, WHOLE.seed)
    teacher = Teacher.load(args.out / "teacher")
    teachers = {True: teacher, False: Teacher(teacher.encoder, np.zeros((0, WIDTH), np.float32))}
    for name, variant in VARIANTS.items():
        folder = args.out / "ablations" / name
        if (folder / "model.safetensors").is_file():
            continue
        print(name, flush=True)
        model = load(args.out / args.start).model
        start_heads(model, table, WHOLE.seed)
        read = replace(table, positive=tokenised(tokenizer, [p.positive for p in pairs], variant.longest))
        trainer = FourBits(
            model, read, variant.plan(pairs, whole)[: args.steps], variant.settings, folder,
            special=tokenizer.special_ids, idf=idf, new=np.load(args.out / "new.npy"),
            teacher=Aims(pairs, teachers[variant.neutral]) if variant.settings.teacher else None,
        )  # fmt: skip
        finish(trainer, model, tokenizer, folder)


if __name__ == "__main__":
    main()
