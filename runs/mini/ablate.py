"""What the parts of joint training are worth: the recipe of `train.py` less one part, from one start, same batches.

    python runs/mini/ablate.py --data ../shared/data --start untrained --steps 80
    for name in joint no-self-distillation no-teacher; do
        threefold evaluate DATA/bench/small.tar.xz -m build/mini/ablations/$name --modes dense,sparse,multi,hybrid \
            --measures nDCG@10,accuracy@1 --averages --save results/ablations/$name.json
        threefold evaluate build/mini/dev/natural/en --split dev -m build/mini/ablations/$name \
            --modes dense,multi,hybrid --measures nDCG@10 --save results/ablations/$name-natural-en.json
    done

    joint                 three heads, their sum, self-distillation, E5's vectors
    no-self-distillation  no head learns from the sum of all
    no-teacher            nobody is told the vectors of E5

Resumable: run the same line again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from teacher import Teacher

from threefold.encoder.checkpoint import load
from threefold.text.tokenizer import Tokenizer
from threefold.train.loop import TrainSettings
from threefold.train.losses import LossWeights
from train import BODY_LR, SPARSE_LOSS, TEACHER, Aims, FourBits, finish, prepared, start_heads

WHOLE = TrainSettings(
    loss=LossWeights(sparse_loss=SPARSE_LOSS),
    teacher=TEACHER,
    body_lr=BODY_LR,
    idf_steps=75,
    checkpoint_every=25,
    log_every=10,
    seed=4,
)
VARIANTS = {
    "joint": WHOLE,
    "no-self-distillation": replace(WHOLE, loss=replace(WHOLE.loss, distil=0.0)),
    "no-teacher": replace(WHOLE, teacher=0.0),
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
    aims = Aims(pairs, Teacher.load(args.out / "teacher"))
    for name, settings in VARIANTS.items():
        folder = args.out / "ablations" / name
        if (folder / "model.safetensors").is_file():
            continue
        print(name, flush=True)
        model = load(args.out / args.start).model
        start_heads(model, table, settings.seed)
        trainer = FourBits(
            model, table, whole[: args.steps], settings, folder,
            special=tokenizer.special_ids, idf=idf, teacher=aims if settings.teacher else None,
            new=np.load(args.out / "new.npy"),
        )  # fmt: skip
        finish(trainer, model, tokenizer, folder)


if __name__ == "__main__":
    main()
