"""Whole recipes on a tiny model: stages, validation, resuming, and a result that `Encoder` loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import unigram_tokenizer
from tests.train.small import model

from threefold.cli.main import main
from threefold.cli.train import clock, describe
from threefold.encoder.checkpoint import Model, ModelConfig, load, save
from threefold.encoder.encoder import Encoder
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.errors import CheckpointError, ConfigError, DataError
from threefold.train.begun import read_json, write_json
from threefold.train.lora import add_adapters
from threefold.train.recipe import Lora, read_recipe, read_toml
from threefold.train.record import Record
from threefold.train.run import Listener, train

WORDS = ["fox", "dog", "lazy", "brown", "quick", "jumps", "over", "return", "first", "second", "numbers", "add"]
TRAIN: dict[str, Any] = {"log_every": 1, "checkpoint_every": 2, "precision": "float32", "body_lr": 1e-3}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a tiny model, 24 pairs, and a data set to validate on."""
    tokenizer = unigram_tokenizer()
    network = NetworkConfig(vocab=tokenizer.vocab, hidden=16, layers=1, heads=2, ffn=32, positions=66)
    model = Model(ModelConfig(network, HeadsConfig(multi_dim=8), 64, matryoshka=(8,)))
    initialise(model, std=0.3)
    save(model, tmp_path / "tiny")
    tokenizer.save(tmp_path / "tiny" / "tokenizer.json")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 9)) for _ in range(24)]
    pairs = [{"query": text[:20], "pos": [text], "neg": [texts[i - 5]]} for i, text in enumerate(texts)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "texts.txt").write_text("".join(f"{text} {text}\n" for text in texts))
    dev = tmp_path / "dev"
    (dev / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (dev / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": f"q{i}", "text": text[:12]} for i, text in enumerate(texts)]
    (dev / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(len(texts)))
    (dev / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return tmp_path


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "output": "out",
        "model": "tiny",
        "data": {"files": ["pairs.jsonl"], "budget": 300, "limits": {"max_query": 40, "max_passage": 40}},
        "train": TRAIN,
        **changes,
    }


class Heard(Listener):
    def __init__(self, stop_at: int = -1) -> None:
        self.lines: list[tuple[str, dict[str, float]]] = []
        self.figures: list[tuple[int, float]] = []
        self.stop_at = stop_at

    def line(self, stage: str, line: Mapping[str, float]) -> None:
        if line["step"] == self.stop_at:
            raise KeyboardInterrupt
        self.lines.append((stage, dict(line)))

    def figure(self, stage: str, step: int, value: float) -> None:
        self.figures.append((step, value))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).model.state_dict()


def test_stages_follow_each_other_and_the_result_is_a_model(place: Path) -> None:
    stages = [
        {"kind": "retromae", "files": ["texts.txt"]},
        {"kind": "crops", "files": ["texts.txt"], "train": {"heads": ["dense"]}},
        {"kind": "ict", "files": ["texts.txt"], "train": {"sub_tokens": 100, "recompute": True}},
        {"kind": "pairs", "epochs": 2, "train": {"idf_steps": 5}},
    ]
    heard = Heard()
    wanted = read_recipe(recipe(stages=stages, max_tokens=128, matryoshka=[8, 4], name="mine", teacher="tiny"))
    done = train(wanted, place, listener=heard)
    assert [stage["stage"] for stage in done.stages] == ["1-retromae", "2-crops", "3-ict", "4-pairs"]
    encoder = Encoder(place / "out")
    assert encoder.config.name == "mine"
    assert encoder.config.max_tokens == 128
    assert encoder.config.matryoshka == (8, 4)
    assert encoder.encode(["quick brown fox " * 40]).dense is not None
    assert {"encoder", "decoder"} < heard.lines[0][1].keys()
    last = heard.lines[-1][1]
    assert {"dense", "sparse", "multi", "teacher", "matryoshka", "lr", "tokens_per_s", "progress"} < last.keys()
    logged = [json.loads(line) for line in (place / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in logged] == [stage for stage, _ in heard.lines]
    assert not list((place / "out").rglob("training.pt"))
    again = Heard()
    assert train(wanted, place, listener=again).stages == done.stages
    assert again.lines == []


def test_the_best_model_of_validation_is_kept(place: Path) -> None:
    """The rate is so high that training destroys the model: the best is that of before, and patience ends it."""
    validation = {"sets": ["dev"], "mode": "dense", "every": 1, "patience": 2, "measure": "ndcg@10"}
    ruin = TRAIN | {"body_lr": 3.0, "word_lr": 3.0, "head_lr": 3.0, "warmup": 0.0}
    heard = Heard()
    stages = [{"epochs": 20}]
    done = train(read_recipe(recipe(validation=validation, train=ruin, stages=stages)), place, listener=heard)
    figures = dict(heard.figures)
    best = max(figures, key=lambda step: (figures[step], -step))
    assert done.stages[0]["steps"] == best + 2
    assert done.stages[0]["validation"] == [list(pair) for pair in heard.figures]
    if best == 0:
        before, after = weights(place / "tiny"), weights(place / "out")
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(place: Path) -> None:
    validation = {"sets": ["dev"], "mode": "hybrid", "every": 3}
    stages = [{"epochs": 3}]
    whole = Heard()
    train(read_recipe(recipe(output="whole", validation=validation, stages=stages)), place, listener=whole)
    parted = read_recipe(recipe(validation=validation, stages=stages))
    with pytest.raises(KeyboardInterrupt):
        train(parted, place, listener=Heard(stop_at=6))
    train(parted, place, listener=Heard())
    logs = [
        [json.loads(line) for line in (place / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "out")
    ]
    first_curve, second_curve = ([(line["step"], line["total"]) for line in log] for log in logs)
    assert first_curve == second_curve
    first, second = weights(place / "whole"), weights(place / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_is_killed_when_it_has_ended_says_the_same_of_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step, and before what is said of the stage is written."""
    wanted, heard = read_recipe(recipe()), Heard()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("threefold.train.run.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            train(wanted, place, listener=heard)
    assert train(wanted, place).stages[0]["last"] == heard.lines[-1][1]


def test_bad_data_of_any_stage_are_named_before_the_first_one_trains(place: Path) -> None:
    good = (place / "pairs.jsonl").read_text()
    (place / "bad.jsonl").write_text(good + json.dumps({"query": "fox", "pos": ["a fox"], "pos_scores": [1, 2]}) + "\n")
    changes = {"stages": [{"kind": "pairs"}, {"kind": "pairs", "files": ["bad.jsonl"]}]}
    with pytest.raises(DataError, match=r'bad\.jsonl:25: "pos_scores" has 2 numbers for 1 texts'):
        train(read_recipe(recipe(**changes)), place)
    assert not (place / "out" / "stages").exists()
    assert not (place / "out" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("train_", "message"),
    [({"precision": "float16"}, "float16 is for GPUs"), ({"heads": ["sparse"]}, "the model has no sparse head")],
)
def test_what_a_later_stage_cannot_do_is_refused_before_the_first_one_trains(
    place: Path, train_: dict[str, Any], message: str
) -> None:
    tiny = load(place / "tiny").model
    dense = Model(replace(tiny.config, heads=HeadsConfig(sparse=False, multi_dim=0)))
    dense.network = tiny.network
    save(dense, place / "tiny")
    stages = [{}, {"train": train_}]
    with pytest.raises(ConfigError, match=message):
        train(read_recipe(recipe(device="cpu", stages=stages)), place)
    assert not (place / "out").exists()


def test_an_output_belongs_to_one_recipe(place: Path) -> None:
    train(read_recipe(recipe()), place)
    with pytest.raises(ConfigError, match=r"begun with another recipe: train\.seed was 0, now it is 1"):
        train(read_recipe(recipe(train=TRAIN | {"seed": 1})), place)
    batches = recipe()["data"] | {"memory_mb": 1}
    with pytest.raises(ConfigError, match=r"begun with another recipe: data\.memory_mb was 0, now it is 1"):
        train(read_recipe(recipe(data=batches)), place)
    train(read_recipe(recipe(output="./out", device="cpu", train=TRAIN | {"log_every": 2})), place)


def test_data_that_have_changed_are_another_run(place: Path) -> None:
    """Words that are replaced in the middle of a run, records that are added after it: refused, or begun again."""
    file = place / "pairs.jsonl"
    wanted, before = read_recipe(recipe()), file.read_text()
    with pytest.raises(KeyboardInterrupt):
        train(wanted, place, listener=Heard(stop_at=3))  # after the checkpoint of step 2
    assert (place / "out/stages/1-pairs/training.pt").is_file()
    file.write_text(before.replace("fox", "dog"))
    with pytest.raises(ConfigError, match=r"begun with other data of stage 1-pairs\. .* or say --force to begin again"):
        train(wanted, place)
    file.write_text(before)
    train(wanted, place)
    more = [json.dumps({"query": f"add {i}", "pos": [f"return {i}"]}) + "\n" for i in range(24)]
    file.write_text(before + "".join(more))
    with pytest.raises(ConfigError, match="begun with other data of stage 1-pairs"):
        train(wanted, place)
    heard = Heard()
    train(wanted, place, listener=heard, force=True)
    assert heard.lines[0][1]["step"] == 1
    assert len((place / "out/log.jsonl").read_text().splitlines()) == len(heard.lines)
    again = Heard()
    train(wanted, place, listener=again, force=True)  # it is this run now: nothing is begun again
    assert again.lines == []


def test_a_damaged_checkpoint_is_begun_again_where_it_is_asked_for(place: Path) -> None:
    wanted, checkpoint = read_recipe(recipe()), place / "out/stages/1-pairs/training.pt"
    with pytest.raises(KeyboardInterrupt):
        train(wanted, place, listener=Heard(stop_at=3))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*training\.pt: .*\. Delete it to begin again"):
        train(wanted, place)
    heard = Heard()
    train(wanted, place, listener=heard, force=True)
    assert [line["step"] for _, line in heard.lines] == list(range(1, len(heard.lines) + 1))
    assert len((place / "out/log.jsonl").read_text().splitlines()) == len(heard.lines)


def test_a_run_that_is_killed_while_it_begins_again_is_still_the_old_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its stages would pass for those of the new recipe."""
    train(read_recipe(recipe()), place)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    other = read_recipe(recipe(train=TRAIN | {"seed": 1}))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(other, place, force=True)
    with pytest.raises(ConfigError, match="begun with another recipe"):
        train(other, place)


def test_texts_and_the_model_are_compared_too(place: Path) -> None:
    """Stages of single texts have no table on disk."""
    wanted = read_recipe(recipe(stages=[{"kind": "crops", "files": ["texts.txt"]}]))
    train(wanted, place)
    texts = (place / "texts.txt").read_text()
    (place / "texts.txt").write_text(texts.replace("fox", "dog"))
    with pytest.raises(ConfigError, match="begun with other data of stage 1-crops"):
        train(wanted, place)
    (place / "texts.txt").write_text(texts)
    tiny = load(place / "tiny").model
    initialise(tiny, std=0.3, seed=5)
    save(tiny, place / "tiny")
    with pytest.raises(ConfigError, match="begun with other weights of the model"):
        train(wanted, place)


def test_nothing_is_left_of_killed_processes(place: Path) -> None:
    folder = place / "out/stages/1-pairs"
    folder.mkdir(parents=True)
    for path in (folder / ".7.training.pt", folder / ".7.model.safetensors", place / "out/.7.model.safetensors"):
        path.write_bytes(b"half")
    train(read_recipe(recipe()), place)
    assert not list((place / "out").rglob(".7.*"))


def test_a_slip_of_the_pen_leaves_the_output_free(place: Path) -> None:
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file"):
        train(read_recipe(recipe(data=recipe()["data"] | {"files": ["trian.jsonl"]})), place)
    train(read_recipe(recipe()), place)


def test_the_output_is_never_read_as_data(place: Path) -> None:
    (place / "sub").mkdir()
    (place / "pairs.jsonl").rename(place / "sub" / "pairs.jsonl")
    data = recipe()["data"] | {"files": ["sub"]}
    for changes in ({"output": "sub/out"}, {"data": data | {"cache": "sub/cache"}}):
        with pytest.raises(ConfigError, match=r"sub/(out|cache) is in .*sub, all files of which are training data"):
            train(read_recipe(recipe(**{"data": data, **changes})), place)
    train(read_recipe(recipe(data=data)), place)


def test_a_file_that_was_cut_off_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(read_recipe(recipe()), place)
    for name in ("recipe.json", "data.json", "stages/1-pairs/done.json"):
        whole = (place / "out" / name).read_text()
        (place / "out" / name).write_text("")
        with pytest.raises(CheckpointError, match=rf"{name} is damaged: .*\. Delete it and run the same line again"):
            train(read_recipe(recipe()), place)
        (place / "out" / name).write_text(whole)

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text[:3].encode(encoding))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_json(place / "out/recipe.json", {"output": "other"})
    assert read_json(place / "out/recipe.json")["output"] == "out"


def test_adapters_are_merged_into_the_weights(place: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is in the extra train")
    rates = TRAIN | {"body_lr": 1e-2}
    for output in ("out", "again"):
        torch.rand(1)  # what else is drawn in the process does not count
        train(read_recipe(recipe(output=output, lora={"rank": 2, "layers": ["qkv", "down"]}, train=rates)), place)
    before, after, again = (weights(place / name) for name in ("tiny", "out", "again"))
    assert all(torch.equal(again[name], after[name]) for name in after)  # the adapters are drawn with the seed
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {"network.layers.0.qkv.weight", "network.layers.0.down.weight"}
    assert moved == adapted | {"heads.sparse.weight", "heads.sparse.bias", "heads.multi.weight", "heads.multi.bias"}
    change = after["network.layers.0.qkv.weight"] - before["network.layers.0.qkv.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2


def test_adapters_are_drawn_with_the_seed() -> None:
    """In every process the same ones, whatever has been drawn there before; and nothing else is drawn otherwise."""
    pytest.importorskip("peft", reason="LoRA is in the extra train")

    def drawn(seed: int, before: int) -> torch.Tensor:
        adapted = model()
        torch.manual_seed(before)
        expected = torch.rand(4)
        torch.manual_seed(before)
        add_adapters(adapted, Lora(rank=2, layers=("down",)), seed)
        assert torch.equal(torch.rand(4), expected)
        return torch.cat([p.flatten() for name, p in adapted.named_parameters() if "lora_A" in name])

    assert torch.equal(drawn(0, before=1), drawn(0, before=2))
    assert not torch.equal(drawn(0, before=1), drawn(1, before=1))


def test_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        'output = "out"\nmodel = "tiny"\nint8 = true\n[data]\nfiles = ["pairs.jsonl"]\nbudget = 300\n'
        "limits = {max_query = 40, max_passage = 40}\n"
        '[train]\nlog_every = 1\nprecision = "float32"\n[[stages]]\nkind = "pairs"\n'
    )
    (place / "recipe.toml").write_text(text)
    assert read_recipe(read_toml(place / "recipe.toml")).int8
    assert main(["train", str(place / "recipe.toml"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["stages"][0]["stage"] == "1-pairs"
    assert Encoder(said["folder"]).encode(["quick fox"]).dense is not None
    (place / "recipe.toml").write_text(text.replace("budget = 300", "budget = 150"))
    assert main(["train", str(place / "recipe.toml")]) == 2
    assert "data.budget was 300, now it is 150" in " ".join(capsys.readouterr().err.split())
    assert main(["train", str(place / "recipe.toml"), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["steps"] > said["stages"][0]["steps"]
    (place / "recipe.toml").write_text(text.replace("budget", "bugdet"))
    assert main(["train", str(place / "recipe.toml")]) == 2
    assert "did you mean 'budget'?" in " ".join(capsys.readouterr().err.split())


def test_texts_longer_than_the_model_reads_are_refused_before_they_are_read(place: Path) -> None:
    data = {"files": ["nowhere.jsonl"], "limits": {"max_passage": 65, "max_query": 64}}
    with pytest.raises(ConfigError, match=r"data\.limits\.max_passage is 65, the model reads 64 tokens"):
        train(read_recipe(recipe(data=data)), place)


def test_a_dense_model_gets_the_other_heads(place: Path) -> None:
    tiny = load(place / "tiny").model
    dense = Model(replace(tiny.config, heads=HeadsConfig(sparse=False, multi_dim=0, pooling="mean")))
    dense.network = tiny.network
    save(dense, place / "tiny")
    heads = {"sparse": True, "multi_dim": 4}
    train(read_recipe(recipe(new_heads=heads, train=TRAIN | {"idf_steps": 3, "freeze": ["body", "words"]})), place)
    three = Encoder(place / "out").encode(["quick brown fox"])
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    assert three.multi[0].shape[1] == 4
    assert torch.equal(weights(place / "out")["network.words.weight"], tiny.network.words.weight)


@pytest.mark.parametrize(("prompts", "kept"), [("data", "query: "), ("drop", "")])
def test_a_model_with_prompts_wants_to_know_about_them(place: Path, prompts: str, kept: str) -> None:
    about = json.loads((place / "tiny" / "threefold.json").read_text())
    (place / "tiny" / "threefold.json").write_text(json.dumps(about | {"query_prompt": "query: "}))
    with pytest.raises(ConfigError, match=r"reads queries after 'query: ' and .* Say prompts = \"data\""):
        train(read_recipe(recipe()), place)
    train(read_recipe(recipe(prompts=prompts, max_tokens=50)), place)
    assert Encoder(place / "out").prompts == {"query": kept, "document": ""}
    assert Encoder(place / "out").config.max_tokens == 50


def test_the_log_is_there_for_tensorboard_too(place: Path) -> None:
    pytest.importorskip("tensorboardX", reason="TensorBoard's files need it or tensorboard")
    train(read_recipe(recipe()), place)
    written = list((place / "out" / "tensorboard" / "1-pairs").glob("events.out.tfevents.*"))
    assert written
    assert b"tokens_per_s" in written[0].read_bytes()


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_model_of_one(place: Path) -> None:
    stages = '[[stages]]\nkind = "retromae"\nfiles = ["texts.txt"]\n[[stages]]\nepochs = 2\n'
    for name in ("one", "two"):
        (place / f"{name}.toml").write_text(
            f'output = "{name}"\nmodel = "tiny"\n[data]\nfiles = ["pairs.jsonl"]\nbudget = 300\n'
            'limits = {max_query = 40, max_passage = 40}\n[train]\nlog_every = 1\nprecision = "float32"\n'
            "body_lr = 1e-2\n[lora]\nrank = 2\n"
            f'[validation]\nsets = ["dev"]\nevery = 5\n{stages}'
        )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command, name in (([sys.executable], "one"), (launch, "two")):
        call = [*command, "-m", "threefold", "train", str(place / f"{name}.toml")]
        done = subprocess.run(
            call, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr
    curves = [
        [json.loads(line) for line in (place / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")
    ]
    assert len(curves[0]) == len(curves[1]) > 8
    for ours, theirs in zip(*curves, strict=True):
        assert (ours["stage"], ours["step"]) == (theirs["stage"], theirs["step"])
        assert theirs["total"] == pytest.approx(ours["total"], rel=1e-3)
    one, two, before = (weights(place / name)["network.layers.0.down.weight"] for name in ("one", "two", "tiny"))
    assert (one - before).abs().max() > 1e-2
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    lines = [{"stage": "1-pairs", "step": step} for step in (1, 2, 3)] + [{"stage": "0-crops", "step": 9}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "1-p')
    record = Record(tmp_path, "1-pairs", after=2)
    record({"step": 3.0, "total": 0.5})
    record.close()
    assert record.last == {"step": 3.0, "total": 0.5}
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert kept == [*lines[:2], lines[3], {"stage": "1-pairs", "step": 3.0, "total": 0.5}]


def test_the_live_line_says_what_matters() -> None:
    line = {"step": 20, "of": 80, "total": 1.5, "dense": 0.25, "lr": 2e-5, "tokens_per_s": 1234.5, "progress": 0.25}
    text = describe("1-pairs", line | {"elapsed_s": 60.0})
    assert text == (
        "1-pairs  step 20 of 80  |  total 1.500  dense 0.250  |  lr 2.0e-05  |  1,234 tokens/s  |  3:00 left"
    )
    assert clock(3723) == "1:02:03"
