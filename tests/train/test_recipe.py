from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from threefold.errors import ConfigError
from threefold.train.recipe import FINE_TUNING, read_recipe, read_toml

LEAST: dict[str, Any] = {"output": "out", "data": {"files": ["a.jsonl"]}}


def test_the_least_recipe_fine_tunes() -> None:
    recipe = read_recipe(LEAST)
    settings = recipe.train.to_dict()
    assert {key: settings[key] for key in FINE_TUNING} == FINE_TUNING
    assert recipe.stages == ()


def test_a_given_setting_leaves_the_other_defaults() -> None:
    recipe = read_recipe(LEAST | {"train": {"body_lr": 1e-3, "loss": {"distil": 0.0}}})
    assert (recipe.train.body_lr, recipe.train.word_lr, recipe.train.loss.distil) == (1e-3, 1e-4, 0.0)
    assert recipe.train.loss.temperature == 0.02


def test_a_stage_changes_what_it_names() -> None:
    stages = [{"kind": "crops"}, {"train": {"minutes": 3, "loss": {"distil": 0.5}}}]
    recipe = read_recipe(LEAST | {"train": {"seed": 4, "loss": {"sparse_loss": 0.3}}, "stages": stages})
    first, second = (recipe.settings_of(stage) for stage in recipe.stages)
    assert (first.minutes, first.seed, first.loss.distil) == (0.0, 4, 1.0)
    assert (second.minutes, second.seed, second.loss.distil, second.loss.sparse_loss) == (3.0, 4, 0.5, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, r"unknown setting 'modle'; did you mean 'model'\?"),
        ({"train": {"bdy_lr": 1.0}}, r"unknown setting 'train\.bdy_lr'; did you mean 'body_lr'\?"),
        ({"train": {"loss": {"temprature": 1.0}}}, r"'train\.loss\.temprature'; did you mean 'temperature'\?"),
        ({"stages": [{"kind": "pairs", "train": {"minute": 1}}]}, r"'stages\.train\.minute'; did you mean 'minutes'\?"),
        (
            {"data": {"files": ["a"], "limits": {"max_qery": 9}}},
            r"'data\.limits\.max_qery'; did you mean 'max_query'\?",
        ),
        ({"zzz": 1}, r"unknown setting 'zzz'; known are data, device,"),
        ({"data": {}}, "data.files is required"),
        ({"stages": [{"kind": "both"}]}, r"'both' is not one of 'pairs', 'crops'"),
        ({"stages": [{"train": {"warmup": 2.0}}]}, r"stages\[0\].train: warmup must be from 0"),
        ({"lora": {"rank": 0}}, "rank of at least 1"),
        ({"validation": {"sets": []}}, "validation needs sets"),
        ({"train": {"precision": "int4"}}, "'int4' is not one of"),
        ({"train": {"loss": {"distil": -1}}}, r"recipe\.train\.loss: distil must not be negative; got -1"),
        ({"train": {"body_lr": math.nan}}, "body_lr must be a finite number; got nan"),
        ({"train": {"minutes": math.inf}}, "minutes must be a finite number; got inf"),
        ({"train": {"clip": math.nan}}, "clip must be positive; got nan"),
        ({"train": {"multi_dims": [8, 0]}}, "multi_dims must be at least 1; got 0"),
        ({"train": {"seed": -1}}, "seed must not be negative; got -1"),
        ({"stages": [{"train": {"seed": -1}}]}, r"stages\[0\]\.train: seed must not be negative; got -1"),
        ({"data": {"files": ["a"], "limits": {"seed": -1}}}, "seed must not be negative"),
        ({"data": {"files": ["a"], "budget": 0}}, r"recipe\.data: budget must be positive; got 0"),
        ({"data": {"files": ["a"], "temperature": math.nan}}, "temperature must be at least 1; got nan"),
        ({"validation": {"sets": ["dev"], "mode": "dens"}}, r"recipe\.validation: unknown mode 'dens'"),
        ({"validation": {"sets": ["dev"], "measure": "nDCG"}}, r"recipe\.validation: measure: 'nDCG' is not a measure"),
        ({"max_tokens": -1}, "max_tokens must not be negative; got -1"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(LEAST | change)


def test_a_measure_is_written_in_one_way() -> None:
    recipe = read_recipe(LEAST | {"validation": {"sets": ["dev"], "measure": "ndcg@10"}})
    assert recipe.validation is not None
    assert recipe.validation.measure == "nDCG@10"


def test_no_clipping_is_fine() -> None:
    assert read_recipe(LEAST | {"train": {"clip": math.inf}}).train.clip == math.inf


def test_files_that_are_no_toml_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("output = ")
    (tmp_path / "b.toml").write_bytes(b"a = '\xff'")
    for name in ("a.toml", "b.toml"):
        with pytest.raises(ConfigError, match=f"{name}: not TOML"):
            read_toml(tmp_path / name)
    with pytest.raises(ConfigError, match=r"c\.toml: cannot be read"):
        read_toml(tmp_path / "c.toml")
