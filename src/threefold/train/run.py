"""A recipe, run: data -> stages -> the folder of a model. Killed at any moment, the same call goes on where it was.

OUTPUT/recipe.json, data.json, log.jsonl, tensorboard/
OUTPUT/stages/1-pairs/          training.pt while it runs; the model and done.json when it is over
OUTPUT/model.safetensors, ...   the result
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from threefold.encoder.checkpoint import load, save
from threefold.encoder.precision import choose_device
from threefold.encoder.sources import find
from threefold.errors import ConfigError
from threefold.text.tokenizer import Tokenizer
from threefold.train.begun import Begun, read_json, write_json
from threefold.train.checkpoints import drop_drafts
from threefold.train.loop import Trainer
from threefold.train.lora import add_adapters, merged, require_peft
from threefold.train.parts import add_heads, trained_heads
from threefold.train.positions import extend_positions
from threefold.train.prepared import Prepared, idf_of, prepare_stage
from threefold.train.reader import arithmetic
from threefold.train.recipe import Recipe
from threefold.train.record import Record
from threefold.train.retromae import RetroMAE
from threefold.train.updates import Updates
from threefold.train.validate import Validator, beside
from threefold.train.vectors import VectorTeacher
from threefold.train.world import World


class Listener:
    """Hears what a run says. Every method does nothing here."""

    def reading(self, items: int, tokens: int) -> None:
        """So many pairs or texts have been read."""

    def stage(self, name: str, steps: int, done: int, counts: Mapping[str, int]) -> None:
        """A stage begins, or goes on after `done` steps; `counts`: what is odd about its data."""

    def line(self, stage: str, line: Mapping[str, float]) -> None:
        """Means over the last steps."""

    def figure(self, stage: str, step: int, value: float) -> None:
        """A figure of validation."""


class Trained(NamedTuple):
    """What came out: the folder, and of every stage its steps, its last line and its figures by step."""

    folder: Path
    stages: list[dict[str, Any]]


def train(
    recipe: Recipe,
    base: Path | None = None,
    *,
    world: World | None = None,
    listener: Listener | None = None,
    force: bool = False,
) -> Trained:
    """Run all stages that are not done yet and write the result.

    base   folder that relative paths begin from; None: the current one
    force  begin again where the output is of another recipe, model or data, or a checkpoint is damaged
    """
    run = _Run(recipe, base or Path(), world or World(), listener or Listener(), force=force)
    run.begun.is_other(recipe, {}, force=force)  # refused now, not when the data have been read
    stages = run.prepared()
    run.begin(stages)
    found = [run.stage(prepared) for prepared in stages]
    return Trained(run.finish(), found)


class _Run:
    def __init__(self, recipe: Recipe, base: Path, world: World, listener: Listener, *, force: bool) -> None:
        self.recipe, self.base, self.world, self.listener, self.force = recipe, base, world, listener, force
        self.output = base / recipe.output
        self.begun = Begun(self.output)
        if recipe.lora is not None:
            require_peft()
        self.device = choose_device(recipe.device)
        if world.size > 1 and self.device.type == "cuda":
            self.device = torch.device("cuda", world.local)
            torch.cuda.set_device(self.device)
        folder = self._find(recipe.model)
        loaded = load(folder)
        self.tokenizer, self.model, self.hash = Tokenizer.load(folder), loaded.model, loaded.hash
        self._change_model()
        self._check_stages()
        limits, most = recipe.data.limits, self.model.config.network.max_tokens
        for name in ("max_query", "max_passage"):
            if getattr(limits, name) > most:
                raise ConfigError(
                    f"data.limits.{name} is {getattr(limits, name)}, the model reads {most} tokens. Lower it, or give "
                    "the model more positions by max_tokens"
                )

    def _find(self, name: str) -> Path:
        return self.base / name if (self.base / name).is_dir() else find(name).folder

    def _change_model(self) -> None:
        recipe, config = self.recipe, self.model.config
        if recipe.new_heads is not None:
            new = recipe.new_heads
            add_heads(self.model, sparse=new.sparse, multi_dim=new.multi_dim, seed=recipe.train.seed)
        changes: dict[str, Any] = {"name": recipe.name, "origin": ""}
        if recipe.max_tokens > config.network.max_tokens:
            extend_positions(self.model, recipe.max_tokens, recipe.positions)
        elif recipe.max_tokens:
            changes["max_tokens"] = recipe.max_tokens
        if (config.query_prompt or config.document_prompt) and not recipe.prompts:
            raise ConfigError(
                f"{recipe.model} reads queries after {config.query_prompt!r} and documents after "
                f'{config.document_prompt!r}; training data are read as they are. Say prompts = "data" if they hold '
                'the prompts, or prompts = "drop" for a model that needs none'
            )
        if recipe.prompts == "drop":
            changes |= {"query_prompt": "", "document_prompt": ""}
        if recipe.matryoshka:
            changes["matryoshka"] = recipe.matryoshka
        self.model.config = replace(self.model.config, **changes)

    def _check_stages(self) -> None:
        """What model or device cannot do is refused now, not when the stages before have been trained."""
        for stage in self.recipe.chosen:
            settings = self.recipe.settings_of(stage)
            arithmetic(settings.precision, self.device)
            if stage.kind != "retromae":
                trained_heads(self.model, settings)

    # ---- before --------------------------------------------------------------------------------------

    def prepared(self) -> list[Prepared]:
        """The data of all stages; the first process reads them, the others find them in the cache."""
        if not self.world.first:
            self.world.wait()
        stages = [
            prepare_stage(self.recipe, number, stage, self.tokenizer, self.base, self.world.size, self.listener.reading)
            for number, stage in enumerate(self.recipe.chosen)
        ]
        if self.world.first:
            self.world.wait()
        return stages

    def begin(self, stages: list[Prepared]) -> None:
        """From here on the output is of this run: its data are there, so the recipe was no slip of the pen."""
        marks = {"model": self.hash, **{stage.name: stage.key for stage in stages}}
        other = self.begun.is_other(self.recipe, marks, force=self.force)
        self.world.wait()  # until every process has looked
        if self.world.first:
            if other:
                self.begun.forget()
            self.begun.write(self.recipe, marks)
        self.world.wait()

    # ---- a stage -------------------------------------------------------------------------------------

    def stage(self, stage: Prepared) -> dict[str, Any]:
        """Run one stage to its end; the model is then the one that it wrote."""
        folder = self.output / "stages" / stage.name
        done = folder / "done.json"
        if not done.is_file():
            about = self._train(stage, folder)
            if self.world.first:
                write_json(done, about)
                _tidy(folder)
            self.world.wait()
        self.model = load(folder).model
        return read_json(done)

    def _train(self, stage: Prepared, folder: Path) -> dict[str, Any]:
        if self.recipe.lora is not None and stage.stage.kind != "retromae":
            add_adapters(self.model, self.recipe.lora, stage.settings.seed)
        self.model.to(self.device)
        run = self._updates(stage, folder)
        run.resume(anew=self.force)
        self.listener.stage(stage.name, len(run.plan), run.step, stage.counts)
        record = Record(self.output, stage.name, run.step) if self.world.first else None

        def report(line: dict[str, float]) -> None:
            if record is not None:
                record(line)
                self.listener.line(stage.name, line)

        watch = self._validator(stage, folder)
        if watch is not None and run.step == 0 and "validation" not in run.notes:
            watch.measure(run)
        try:
            run.run(report, watch)
        finally:
            if record is not None:
                record.close()
        self._keep(folder, best=watch is not None)
        last = {} if record is None else record.last
        return {"stage": stage.name, "steps": run.step, "seconds": run.elapsed_s, "last": last, **run.notes}

    def _updates(self, stage: Prepared, folder: Path) -> Updates:
        special = self.tokenizer.special_ids
        if stage.texts is not None and stage.table is None:
            return RetroMAE(
                self.model, stage.texts, stage.plan, stage.settings, folder,
                special=special, mask_id=self.tokenizer.mask_id, world=self.world,
            )  # fmt: skip
        assert stage.table is not None
        vocab = self.model.config.network.vocab
        teacher = self._teacher(stage)
        return Trainer(
            self.model, stage.table, stage.plan, stage.settings, folder,
            special=special, idf=idf_of(stage.table.positive, vocab) if stage.settings.idf_steps else None,
            teacher=teacher, teacher_dim=None if teacher is None else teacher.encoder.card.dense_dim, world=self.world,
        )  # fmt: skip

    def _teacher(self, stage: Prepared) -> VectorTeacher | None:
        if not self.recipe.teacher:
            return None
        assert stage.table is not None
        encoder = beside(self._find(self.recipe.teacher), self.device)
        return VectorTeacher(encoder, self.tokenizer, stage.table)

    def _validator(self, stage: Prepared, folder: Path) -> Validator | None:
        if self.recipe.validation is None or stage.stage.kind == "retromae":
            return None

        def told(step: int, value: float) -> None:
            self.listener.figure(stage.name, step, value)

        return Validator(self.recipe.validation, self.base, folder, self._write, self.device, told)

    # ---- after ---------------------------------------------------------------------------------------

    def _keep(self, folder: Path, *, best: bool) -> None:
        """The best model of the stage, or its last, becomes its result."""
        if self.world.first and best:
            for file in (folder / "best").iterdir():  # a part of them, when the process was killed right here
                file.replace(folder / file.name)
        elif self.world.first:
            self._write(folder)
        self.world.wait()

    def finish(self) -> Path:
        """Write the result."""
        if self.world.first:
            self._write(self.output, int8=self.recipe.int8)
        self.world.wait()
        return self.output

    def _write(self, folder: Path, *, int8: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder / "tokenizer.json")
        drop_drafts(folder / "model.safetensors")
        save(merged(self.model), folder, int8=int8)


def _tidy(folder: Path) -> None:
    """A stage that is done needs no checkpoint."""
    (folder / "training.pt").unlink(missing_ok=True)
    for name in ("candidate", "best"):
        shutil.rmtree(folder / name, ignore_errors=True)
