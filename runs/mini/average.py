"""Steps 5 and 7: the mean of the weights of several steps, a point between English, translation and search.

    python runs/mini/average.py --out build/mini
    python runs/mini/average.py --out build/mini --parts averaged=0.3,trained2=0.7 --stage averaged2

Joint training moves the body away from MiniLM and from what the translations taught. All weights come from one start,
so their mean is a model too, and better than its parts in what they have lost (model soups, Wortsman et al. 2022, arXiv
2203.05482; WiSE-FT, arXiv 2109.01903). The heads are those of the last step that is named, a joint training.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from threefold.encoder.checkpoint import load, save

#: Part of each step: between two points that were measured on held-out translations and development questions. That
#: averaging helps was first seen on sets of the benchmarks (docs/log.md, 2026-11-27).
PARTS = "untrained=0.15,translated=0.15,trained=0.7"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("build/mini"))
    options.add_argument("--parts", default=PARTS, help="folders below --out, each with its part of the mean")
    options.add_argument("--stage", default="averaged", help="folder below --out for the result")
    args = options.parse_args()
    parts = {name: float(part) for name, part in (one.split("=") for one in args.parts.split(","))}
    models = {name: load(args.out / name).model for name in parts}
    weights = {name: model.state_dict() for name, model in models.items()}
    last = list(parts)[-1]
    mean = {
        name: value if name.startswith("heads.") else sum(part * weights[step][name] for step, part in parts.items())
        for name, value in weights[last].items()
    }
    models[last].load_state_dict(mean)
    save(models[last], args.out / args.stage)
    shutil.copy(args.out / "untrained" / "tokenizer.json", args.out / args.stage)


if __name__ == "__main__":
    main()
