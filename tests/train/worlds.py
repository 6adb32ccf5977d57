"""One of several processes of a run, for the test that compares them with one: `python worlds.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.small import gradients_of, hard_trainer

from threefold.train.world import World


def main() -> None:
    torch.set_num_threads(1)
    folder, world = Path(sys.argv[1]), World.from_environment(torch.device("cpu"))
    run = hard_trainer(folder / "two", world=world)
    run.gradients(run.plan[0])
    if world.first:
        torch.save(gradients_of(run), folder / "gradients.pt")
    logs: list[dict[str, float]] = []
    hard = hard_trainer(folder / "two", {"sub_tokens": 40}, world=world)
    hard.run(logs.append)
    if world.first:
        (folder / "logs.json").write_text(json.dumps(logs))
    world.close()


if __name__ == "__main__":
    main()
