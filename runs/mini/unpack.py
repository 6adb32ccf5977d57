"""Go on from the model in the package, where the folders of the earlier steps are gone.

    python runs/mini/unpack.py --data ../shared/data --out build/mini --stage averaged3

Writes its weights as float32 (they are stored in one byte each: `ship.py` prints what that changes), its tokenizer, and
the inverse document frequencies that training needs.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from initialise import idf

from threefold.encoder.checkpoint import load, save
from threefold.text.tokenizer import Tokenizer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--stage", default="shipped", help="folder below --out for the weights")
    options.add_argument("--model", type=Path, default=Path("src/threefold/models/mini"))
    args = options.parse_args()
    for folder in (args.out / args.stage, args.out / "untrained"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.model / "tokenizer.json", folder)
    save(load(args.model).model, args.out / args.stage)
    np.save(args.out / "idf.npy", idf(args.data, Tokenizer.load(args.model)))


if __name__ == "__main__":
    main()
