"""Training of cross-encoders from files to a folder: every kind of start, what is another run, what is refused."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.encoder.checkpoints import bge_m3, sentence_transformer
from tests.encoder.cross_checkpoints import bge_reranker
from tests.train.test_export import own
from typer.testing import CliRunner

from threefold.cli.main import app
from threefold.encoder.cross import CrossEncoder
from threefold.errors import CheckpointError, ConfigError, InputError
from threefold.train.cross import CrossRun, starting_model, train_cross
from threefold.train.cross_groups import group_plan


def write_data(path: Path) -> Path:
    colours = ["red", "blue", "green", "black", "white", "brown", "quick", "lazy"]
    rows = [
        {
            "query": f"which is {colour}?",
            "pos": [f"the {colour} fox"],
            "neg": [f"the {other} fox" for other in colours[i + 1 : i + 3]],
            "pos_scores": [4.0],
            "neg_scores": [-3.0] * len(colours[i + 1 : i + 3]),
        }
        for i, colour in enumerate(colours)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["bge-m3", "minilm", "mini", "one-type", "reranker"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cross")
    makers: dict[str, Callable[[Path], Path]] = {
        "bge-m3": bge_m3,
        "minilm": sentence_transformer,
        "mini": own,
        "one-type": lambda folder: own(folder, types=1),  # as the embedded one
        "reranker": bge_reranker,
    }
    makers[request.param](root / "start")
    write_data(root / "data.jsonl")
    settings: dict[str, Any] = {
        "kind": "cross", "output": "made", "model": "start", "max_tokens": 40, "epochs": 2, "device": "cpu",
        "data": {
            "files": ["data.jsonl"], "budget": 300, "limits": {"max_query": 20, "max_passage": 20, "negatives": 3},
        },
        "train": {"precision": "float32"},
    }  # fmt: skip
    lines: list[dict[str, float]] = []
    done = train_cross(settings, base=root, report=lines.append)
    assert (done.queries, done.folder) == (8, root / "made")
    assert done.steps >= 2
    assert done.last == lines[-1]
    assert math.isfinite(done.last["kl"])
    logged = [json.loads(line) for line in (root / "made.run" / "log.jsonl").read_text().splitlines()]
    assert logged == [{"stage": "cross", **line} for line in lines]
    assert "first" in logged[0]
    with pytest.raises(InputError, match="is there already"):
        train_cross(settings, base=root)
    again = train_cross(settings, base=root, force=True)  # the run had ended
    assert (again.steps, again.last) == (done.steps, {})
    return root / "made"


PAIRS = [("which is red?", "the red fox"), ("which is red?", "a dog"), ("fox", "The quick brown fox jumps " * 9)]


def test_the_folder_loads_with_our_cross_encoder(trained: Path) -> None:
    cross = CrossEncoder(trained, device="cpu", precision="float32")
    assert cross.max_tokens == 40
    scores = cross.score(PAIRS)
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 3


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_the_folder_loads_with_transformers(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(trained),
        AutoModelForSequenceClassification.from_pretrained(trained),
    )
    queries, texts = (list(column) for column in zip(*PAIRS, strict=True))
    batch = tokenizer(queries, texts, padding=True, truncation="only_second", max_length=40, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(CrossEncoder(trained, device="cpu", precision="float32").score(PAIRS), theirs, atol=1e-5)


def test_the_documented_recipe_fits_the_embedded_model(tmp_path: Path) -> None:
    """Its network has one token type, and gets the second as a copy: nothing that it computes has changed."""
    said = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    example = re.search(r"## Cross-encoders.*?```toml\n(.*?)```", said, re.DOTALL)
    assert example is not None
    run = CrossRun.from_dict(tomllib.loads(example[1]), "train")
    model = starting_model(run, tmp_path).model
    assert model.config.token_types
    assert model.config.network == model.network.config
    types = model.network.types.weight
    assert len(types) == 2
    assert torch.equal(types[0], types[1])
    assert types.requires_grad


@pytest.fixture
def begun(tmp_path: Path) -> dict[str, Any]:
    """The settings of a run that has ended."""
    own(tmp_path / "start")
    write_data(tmp_path / "data.jsonl")
    settings: dict[str, Any] = {
        "output": "made", "model": "start", "max_tokens": 40, "device": "cpu",
        "data": {"files": ["data.jsonl"], "limits": {"max_query": 20, "max_passage": 20, "negatives": 2}},
        "train": {"precision": "float32", "body_lr": 1e-2, "warmup": 0.0},
    }  # fmt: skip
    train_cross(settings, base=tmp_path)
    return settings


@pytest.mark.parametrize("change", ["max_tokens", "model", "weights", "data"])
def test_other_settings_other_weights_and_other_data_are_another_run(
    begun: dict[str, Any], tmp_path: Path, change: str
) -> None:
    """The plan is the same in all of them."""
    settings, changed = dict(begun), "fingerprint of the model"
    if change == "max_tokens":
        settings["max_tokens"], changed = 16, "max_tokens 40, now it is 16"
    elif change == "data":
        words = (tmp_path / "data.jsonl").read_text().replace("quick", "lazy")
        (tmp_path / "data.jsonl").write_text(words)
        changed = "fingerprint of the data"
    else:
        settings["model"] = "other" if change == "model" else "start"
        own(tmp_path / settings["model"], seed=5)
    before = (tmp_path / "made" / "model.safetensors").read_bytes()
    (tmp_path / "made").rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=f"was written with {changed}"):
        train_cross(settings, base=tmp_path)
    (tmp_path / "kept").rename(tmp_path / "made")
    lines: list[dict[str, float]] = []
    train_cross(settings, base=tmp_path, force=True, report=lines.append)
    assert lines  # it was trained again
    assert (tmp_path / "made" / "model.safetensors").read_bytes() != before


def test_where_the_run_goes_on_does_not_matter(begun: dict[str, Any], tmp_path: Path) -> None:
    """Another spelling of the output, another folder for the data, another name of the same model."""
    (tmp_path / "more").mkdir()
    (tmp_path / "data.jsonl").rename(tmp_path / "more" / "data.jsonl")
    (tmp_path / "start").rename(tmp_path / "renamed")
    data = begun["data"] | {"files": ["more/data.jsonl"], "cache": "cache"}
    moved = begun | {"output": "./made", "model": "renamed", "data": data}
    assert train_cross(moved, base=tmp_path, force=True).last == {}  # the run had ended
    with pytest.raises(ConfigError, match=r"more/judge is in .*more, all files of which are training data"):
        train_cross(moved | {"output": "more/judge", "data": data | {"files": ["more"]}}, base=tmp_path)


def test_a_run_that_could_learn_nothing_is_refused(tmp_path: Path) -> None:
    """The teacher is to say all, and has said nothing. Where it has judged some queries, these are trained on."""
    own(tmp_path / "start")
    rows = [json.loads(line) for line in write_data(tmp_path / "data.jsonl").read_text().splitlines()]
    settings: dict[str, Any] = {
        "output": "made", "model": "start", "max_tokens": 40, "device": "cpu",
        "data": {"files": ["data.jsonl"], "budget": 1, "limits": {"max_query": 20, "max_passage": 20, "negatives": 2}},
        "train": {"log_every": 1, "loss": {"contrast": "none"}},
    }  # fmt: skip

    def write(judged: int) -> None:
        silent = [{key: row[key] for key in ("query", "pos", "neg")} for row in rows[judged:]]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:judged], *silent]))

    write(0)
    with pytest.raises(ConfigError, match=r"data\.jsonl: no query has a teacher's scores of its positive and of"):
        train_cross(settings, base=tmp_path)
    write(3)
    lines: list[dict[str, float]] = []
    assert train_cross(settings, base=tmp_path, report=lines.append).steps == 3  # a query each
    assert all(line["kl"] > 0 for line in lines)


def test_the_last_line_is_the_last_line(tmp_path: Path) -> None:
    """One query of two has a teacher's scores: what only the other's line says is no part of it."""
    own(tmp_path / "start")
    first, second = (json.loads(line) for line in write_data(tmp_path / "data.jsonl").read_text().splitlines()[:2])
    del second["pos_scores"], second["neg_scores"]
    (tmp_path / "data.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    lines: list[dict[str, float]] = []
    settings: dict[str, Any] = {
        "output": "made", "model": "start", "max_tokens": 40, "device": "cpu", "epochs": 5,
        "data": {"files": ["data.jsonl"], "budget": 1, "limits": {"max_query": 20, "max_passage": 20, "negatives": 2}},
        "train": {"log_every": 1},
    }  # fmt: skip
    done = train_cross(settings, base=tmp_path, report=lines.append)
    assert "kl" not in lines[-1]
    assert any("kl" in line for line in lines)
    assert done.last == lines[-1]


def test_runs_with_other_seeds_share_no_pass(
    begun: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def noted(*given: Any, seed: int, **settings: Any) -> list[Any]:
        seeds.append(seed)
        return group_plan(*given, seed=seed, **settings)

    monkeypatch.setattr("threefold.train.cross.group_plan", noted)
    for seed in range(3):
        train_cross(begun | {"epochs": 2, "seed": seed, "output": f"made-{seed}"}, base=tmp_path)
    assert len(set(seeds)) == 6


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would train the whole, into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="trained by one process; start threefold train without torchrun"):
        train_cross({"data": {"files": ["data.jsonl"]}, "output": "made"}, base=tmp_path)


def test_settings_are_checked_before_the_work(tmp_path: Path) -> None:
    own(tmp_path / "start")
    write_data(tmp_path / "data.jsonl")
    base: dict[str, Any] = {"data": {"files": ["data.jsonl"]}, "output": "made", "model": "start"}
    none = {"files": ["nowhere.jsonl"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": 600}, "max_tokens is 600; start reads 64"),
        ({"lr": 1}, "unknown setting 'lr'"),
        ({"kind": "three"}, "kind"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"data": {"files": []}}, "files is empty"),
        ({"train": {"precision": "int4"}}, "precision must be auto, float32 or bfloat16, or float16 on a GPU; got"),
        ({"train": {"precision": "float16"}, "device": "cpu", "data": none}, "precision float16 is for GPUs"),
        ({"train": {"warmup": 1}}, "warmup must be from 0 to below 1; got 1.0"),
        ({"train": {"log_every": 0}}, "checkpoint_every and log_every must be at least 1"),
        ({"train": {"clip": 0}}, "clip must be positive; got 0.0"),
        ({"train": {"body_lr": math.nan}}, "body_lr must be a finite number; got nan"),
        ({"train": {"loss": {"distil_weight": -1}}}, "distil_weight must not be negative; got -1"),
        ({"data": {"files": ["data.jsonl"], "budget": 0}}, "budget must be positive; got 0"),
        ({"seed": -1}, "seed must not be negative; got -1"),
    ]
    for change, message in cases:
        with pytest.raises(ConfigError, match=message):
            train_cross(base | change, base=tmp_path)
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        train_cross(base | {"device": "gpu", "data": none}, base=tmp_path)
    assert not (tmp_path / "made").exists()


def test_command(tmp_path: Path) -> None:
    own(tmp_path / "start")
    write_data(tmp_path / "data.jsonl")
    lines = ['kind = "cross"', 'model = "start"', 'output = "made"', "max_tokens = 40", "[data]"]
    lines += ['files = ["data.jsonl"]', "limits = { max_query = 20, max_passage = 20, negatives = 2 }"]
    (tmp_path / "recipe.toml").write_text("\n".join(lines) + "\n")
    done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.toml"), "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    assert (said["queries"], said["folder"]) == (8, str(tmp_path / "made"))
    assert CrossEncoder(tmp_path / "made", device="cpu").max_tokens == 40
