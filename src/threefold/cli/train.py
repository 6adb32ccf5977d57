"""`threefold train`: a recipe in TOML -> a model. `torchrun ... -m threefold train` uses several devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TextColumn

from threefold.cli import options
from threefold.cli.endings import keeping
from threefold.cli.show import err, note, print_json
from threefold.errors import ConfigError

if TYPE_CHECKING:
    from threefold.train.run import Listener

#: Losses on the live line, where a stage has them.
_LOSSES = (
    "total", "dense", "sparse", "multi", "ensemble", "distil", "teacher", "encoder", "decoder", "listwise",
    "pointwise", "kl", "margin", "first",
)  # fmt: skip


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML file: output, model, data, stages, train, validation, ...")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the result, instead of the recipe's.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, instead of the recipe's.")] = "",
    force: Annotated[
        bool,
        typer.Option(help="Begin again where the output is of another recipe or other data; replace a cross-encoder."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train a model. The same line again goes on where it was stopped, on CPUs with the same result."""
    from threefold.train.recipe import read_toml

    table = read_toml(recipe)
    if output:
        options.target_of(output)
    table |= {key: value for key, value in (("output", output), ("device", device)) if value}
    keeping()
    kind = table.pop("kind", "embedder")
    if kind == "cross":
        _train_cross(table, recipe.parent, force, as_json)
    elif kind == "embedder":
        _train(table, recipe.parent, force, as_json)
    else:
        raise ConfigError(f"kind: {kind!r} is not one of 'embedder', 'cross'")


def _train(table: Mapping[str, Any], base: Path, force: bool, as_json: bool) -> None:
    from threefold.encoder.precision import choose_device
    from threefold.train.recipe import read_recipe
    from threefold.train.run import train as run
    from threefold.train.world import World

    chosen = read_recipe(table)
    world = World.from_environment(choose_device(chosen.device))
    try:
        with _live(quiet=as_json or not world.first) as listener:
            done = run(chosen, base, world=world, listener=listener, force=force)
    finally:
        world.close()
    if as_json and world.first:
        print_json({"folder": str(done.folder), "stages": done.stages})
    elif world.first:
        for stage in done.stages:
            note(f"{stage['stage']}: {stage['steps']:,} steps in {clock(stage['seconds'])}{_best(stage)}")
        err.print(f"the model is in {done.folder}; use it with --model {done.folder}")


def _train_cross(table: Mapping[str, Any], base: Path, force: bool, as_json: bool) -> None:
    from threefold.train.cross import train_cross

    started = time.perf_counter()
    with _line(quiet=as_json) as show:
        done = train_cross(table, base=base, force=force, report=lambda line: show(describe("cross", line)))
    if as_json:
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in done._asdict().items()})
    else:
        err.print(f"the cross-encoder is trained, in {clock(time.perf_counter() - started)}: {done.folder}")


def describe(stage: str, line: Mapping[str, float]) -> str:
    """One line: where it is, the losses, the learning rate, tokens per second, time left."""
    losses = "  ".join(f"{name} {line[name]:.3f}" for name in _LOSSES if name in line)
    parts = [f"{stage}  step {line['step']:,.0f} of {line['of']:,.0f}", losses]
    if "lr" in line:
        parts.append(f"lr {line['lr']:.1e}")
    if "tokens_per_s" in line:
        parts.append(f"{line['tokens_per_s']:,.0f} tokens/s")
    if line.get("progress") and "elapsed_s" in line:
        parts.append(f"{clock(line['elapsed_s'] * (1 / line['progress'] - 1))} left")
    return "  |  ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _best(stage: Mapping[str, Any]) -> str:
    figures = stage.get("validation")
    if not figures:
        return ""
    step, best = max(figures, key=lambda one: one[1])
    return f"; validation {100 * figures[0][1]:.1f} before, {100 * best:.1f} at its best, step {step:,}"


@contextmanager
def _line(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line that is written over on a terminal, and line after line elsewhere."""
    live = err.is_terminal and not quiet
    with Progress(TextColumn("{task.description}"), console=err, disable=not live, transient=True) as progress:
        task = progress.add_task("")

        def show(text: str) -> None:
            if live:
                progress.update(task, description=text)
            elif not quiet:
                err.print(text)

        yield show


@contextmanager
def _live(*, quiet: bool) -> Iterator[Listener]:
    from threefold.train import run

    with _line(quiet=quiet) as show:

        class Terminal(run.Listener):
            def reading(self, items: int, tokens: int) -> None:
                show(f"reading: {items:,} items, {tokens:,} tokens")

            def stage(self, name: str, steps: int, done: int, counts: Mapping[str, int]) -> None:
                if not quiet:
                    odd = "; ".join(f"{count:,} {what}" for what, count in counts.items())
                    note(
                        f"{name}: {steps:,} steps"
                        + (f", from step {done:,}" if done else "")
                        + (f" ({odd})" if odd else "")
                    )

            def line(self, stage: str, line: Mapping[str, float]) -> None:
                show(describe(stage, line))

            def figure(self, stage: str, step: int, value: float) -> None:
                if not quiet:
                    note(f"{stage}: validation {100 * value:.2f} at step {step:,}")

        yield Terminal()
