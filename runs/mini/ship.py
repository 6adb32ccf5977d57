"""Step 4: the trained weights as the embedded model: a byte per number or half of one, our layout, into the package.

    python runs/mini/ship.py --out build/mini --to src/threefold/models/mini

Prints how far the bytes move the vectors, on lines of text in many languages.
"""

from __future__ import annotations

import argparse
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from corpus import read_mono

from threefold.encoder.checkpoint import load, save
from threefold.encoder.encoder import Encoder
from threefold.retrieve.tune import Tuned

LIMIT_BYTES = 40_000_000
#: Matrices that came in four bits and were not trained (`train.py`): they lose nothing.
FOUR_BIT = re.compile(r"words\.weight|\.(up|down)\.weight")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="data folder, for the comparison of float32 and one-byte vectors")
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument(
        "--weights", type=Path, nargs="+", help="files of `threefold tune`: the mean is the model's hybrid weights"
    )
    options.add_argument("--stage", default="trained", help="folder below --out with the weights to ship")
    options.add_argument("--to", type=Path, default=Path("src/threefold/models/mini"))
    args = options.parse_args()
    model = load(args.out / args.stage).model
    if args.weights:
        tuned = [Tuned.load(file).weights for file in args.weights]
        fusion = np.mean([(one.dense, one.sparse, one.multi) for one in tuned], axis=0).round(3)
        model.config = replace(model.config, fusion=tuple(fusion.tolist()))
    save(model, args.out / "float")
    save(model, args.to, int8=True, four_bit=[name for name in model.state_dict() if FOUR_BIT.search(name)])
    for folder in (args.out / "float", args.to):
        shutil.copy(args.out / "untrained" / "tokenizer.json", folder / "tokenizer.json")
    size = sum(file.stat().st_size for file in args.to.iterdir())
    print(f"{args.to}: {size / 1e6:.1f} MB")
    if size > LIMIT_BYTES:
        raise SystemExit(f"over the limit of {LIMIT_BYTES / 1e6:.0f} MB")
    if args.data:
        compare(args.data, args.out / "float", args.to)


def compare(data: Path, exact: Path, small: Path) -> None:
    texts = [line for _, line in read_mono(data)][::800]
    a = Encoder(exact, precision="float32").encode(texts, outputs=("dense",)).dense
    b = Encoder(small, precision="float32").encode(texts, outputs=("dense",)).dense
    assert a is not None
    assert b is not None
    cosines = (a * b).sum(axis=1)
    print(f"{len(texts):,} texts: cosine to float32 mean {np.mean(cosines):.5f}, worst {np.min(cosines):.5f}")


if __name__ == "__main__":
    main()
