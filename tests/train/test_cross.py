"""Training of cross-encoders: formulas by hand, candidates and sequences, runs that learn, stop and go on."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.encoder.checkpoints import bge_m3, sentence_transformer
from tests.encoder.cross_checkpoints import bge_reranker
from tests.train.small import table, tokens
from tests.train.test_export import own
from typer.testing import CliRunner

from threefold.cli.main import app
from threefold.encoder.cross import CrossEncoder
from threefold.encoder.cross_model import CrossConfig, CrossModel
from threefold.encoder.network import NetworkConfig, initialise
from threefold.errors import CheckpointError, ConfigError, InputError
from threefold.text.tokenizer import Tokenizer
from threefold.train.batches import PairTable
from threefold.train.cross import CrossRun, starting_model, train_cross
from threefold.train.cross_groups import Frame, candidates, group_plan, pair_tokens
from threefold.train.cross_loop import CrossSettings, CrossTrainer
from threefold.train.cross_losses import CrossLoss, as_matrix, cross_loss, listwise, margin_mse, pointwise
from threefold.types import Floats, Ints, offsets_of

NAN, NONE = math.nan, -math.inf


# ---- losses -----------------------------------------------------------------------------------------------


def test_listwise_by_hand() -> None:
    # softmax of the first: e^0 / (e^0 + e^0) = 1/2; of the second: e^ln3 / (e^ln3 + 1 + 1) = 3/5
    logits = torch.tensor([[0.0, 0.0, NONE], [math.log(3), 0.0, 0.0]])
    assert float(listwise(logits)) == pytest.approx((math.log(2) + math.log(5 / 3)) / 2)


def test_pointwise_by_hand() -> None:
    # sigmoid(ln 3) = 3/4: the positive costs ln(4/3), each of the negatives ln 4, ln 2
    logits = torch.tensor([[math.log(3), math.log(3), 0.0]])
    assert float(pointwise(logits)) == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3)
    missing = torch.tensor([[math.log(3), math.log(3), NONE]])
    assert float(pointwise(missing)) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_margin_mse_by_hand() -> None:
    # margins of the student 2 and 3, of the teacher 1 and unknown; second query: 1 against 4
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 0.0, NONE]])
    teacher = torch.tensor([[5.0, 4.0, NAN], [4.0, 0.0, NAN]])
    assert float(margin_mse(logits, teacher)) == pytest.approx(((2 - 1) ** 2 + (1 - 4) ** 2) / 2)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_that_of_torch(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    weights = CrossLoss(contrast="none", temperature=temperature)
    oracle = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
    )
    assert float(cross_loss(logits, teacher, weights)[0]) == pytest.approx(float(oracle), abs=1e-6)


def test_only_queries_with_a_teacher_are_distilled() -> None:
    logits = torch.tensor([[1.0, 0.0, NONE], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[NAN, 1.0, NAN], [1.0, NAN, NAN], [2.0, NAN, 1.0]])
    total, log = cross_loss(logits, teacher, CrossLoss("none", "margin"))
    assert total.item() == pytest.approx(((0 - 2) - (2 - 1)) ** 2)
    assert log == {"margin": total.item()}
    total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[:2].abs().sum() == 0
    assert logits.grad[2].tolist() == [-6.0, 0.0, 6.0]


@pytest.mark.parametrize("contrast", ["listwise", "pointwise"])
@pytest.mark.parametrize("distil", ["kl", "margin"])
def test_gradients_are_finite_where_candidates_are_missing(contrast: Any, distil: Any) -> None:
    values = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    counts = torch.tensor([2, 3])
    logits = as_matrix(values, counts, NONE)
    teacher = as_matrix(torch.tensor([1.0, 0.0, 1.0, NAN, 0.5]), counts, NAN)
    total, log = cross_loss(logits, teacher, CrossLoss(contrast, distil, distil_weight=2.0))
    assert total.item() == pytest.approx(log[contrast] + 2 * log[distil])
    total.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert (values.grad != 0).all()


def test_settings_without_a_goal_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to learn"):
        CrossLoss("none", "none")
    with pytest.raises(ConfigError, match="temperature must be positive"):
        CrossLoss(temperature=0)


# ---- candidates and batches -------------------------------------------------------------------------------


def with_negatives() -> PairTable:
    """Four pairs; 0 and 1 mean the same; 0 has two hard negatives, 3 has one and takes no others."""
    texts = tokens([[0, 10 + i, 2] for i in range(4)])
    hard = tokens([[0, 20, 21, 2], [0, 22, 2], [0, 23, 2]])
    zeros = np.zeros(4, np.int64)
    return PairTable(
        tokens([[0, 4 + i, 2] for i in range(4)]), texts, zeros, np.array([7, 7, 8, 9]), zeros, zeros.astype(bool),
        negative=hard, negatives=offsets_of([2, 0, 0, 1]),
        positive_score=np.array([3.0, 2.0, NAN, 1.0], np.float32),
        negative_score=np.array([0.5, NAN, -1.0], np.float32), alone=np.array([False, False, False, True]),
    )  # fmt: skip


def of(values: Ints | Floats, offsets: Ints, i: int) -> list[Any]:
    found: list[Any] = values[offsets[i] : offsets[i + 1]].tolist()
    return found


def test_candidates_are_the_positive_the_hard_negatives_and_others() -> None:
    groups = candidates(with_negatives(), 4, seed=0)
    first = of(groups.passages, groups.offsets, 0)
    assert first[:3] == [0, 4, 5]
    assert first[3] in (2, 3)  # 1 means the same
    assert of(groups.passages, groups.offsets, 3) == [3, 6]  # alone
    assert sorted(of(groups.passages, groups.offsets, 1)) == [1, 2, 3]
    scores = of(groups.teacher, groups.offsets, 0)
    assert scores[:2] == [3.0, 0.5]
    assert np.isnan(scores[2:]).all()  # that of a drawn passage is of another query
    assert groups.passage(4).tolist() == [0, 20, 21, 2]
    assert groups.sizes[0] == 4 * 3 + 3 + 4 + 3 + 3
    again, other = candidates(with_negatives(), 4, seed=0), candidates(table(), 3, seed=1)
    assert again.passages.tolist() == groups.passages.tolist()
    assert other.passages.tolist() != candidates(table(), 3, seed=2).passages.tolist()
    assert of(candidates(with_negatives(), 2, 0).passages, np.array([0, 2]), 0) == [0, 4]


def test_answers_of_the_query_are_no_candidates() -> None:
    """Of one record with two answers, of two records, and where another record calls an answer a hard negative."""
    paris, town, madrid = [0, 10, 2], [0, 11, 12, 2], [0, 13, 2]
    texts, zeros = tokens([paris, town, madrid, madrid]), np.zeros(4, np.int64)
    asked = tokens([[0, 4, 2], [0, 4, 2], [0, 5, 2], [0, 6, 2]])
    pairs = PairTable(
        asked, texts, zeros, np.array([1, 2, 3, 3]), zeros, zeros.astype(bool),
        negative=tokens([town, [0, 14, 2], [0, 14, 2]]), negatives=offsets_of([3, 0, 0, 0]),
    )  # fmt: skip
    for seed in range(5):
        groups = candidates(pairs, 5, seed)
        found = [
            [groups.passage(number).tolist() for number in of(groups.passages, groups.offsets, i)] for i in range(4)
        ]
        assert found[0] == [paris, [0, 14, 2], madrid]  # once, though two records have it
        assert found[1] == [town, madrid]
        assert sorted(found[2]) == sorted(found[3]) == sorted([madrid, paris, town])


def test_plan_takes_every_query_once_within_the_budget() -> None:
    groups = candidates(table(), 4, seed=0)
    plan = group_plan(groups, budget=150, window=20, seed=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(60))
    assert max(groups.sizes[rows].sum() for rows in plan if len(rows) > 1) <= 150
    assert any(len(rows) > 1 for rows in plan)
    only = PairTable(
        *(getattr(table(1), name) for name in ("query", "positive", "source", "meaning", "teacher", "symmetric"))
    )
    assert group_plan(candidates(only, 4, 0), budget=100, window=10, seed=0) == []


@pytest.mark.parametrize("limit", [64, 14], ids=["whole", "cut"])
def test_sequences_are_those_of_the_tokenizer(tokenizer: Tokenizer, wordpiece: Tokenizer, limit: int) -> None:
    queries = ["quick fox", "wie wird der Kopf trainiert, und von wem?"]
    passages = ["The lazy dog jumps over the box", "dense and sparse"]
    for each in (tokenizer, wordpiece):
        q, p = (each.encode(texts, max_tokens=100) for texts in (queries, passages))
        two = np.arange(2)
        groups = candidates(PairTable(q, p, two * 0, two, two * 0, two > 5), 2, seed=0)
        made = pair_tokens(groups, two, Frame.of(each, limit))
        pairs = [(queries[i], passages[j]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
        oracle = each.encode_pairs(*zip(*pairs, strict=True), max_tokens=limit)
        assert oracle.truncated.any() == (limit == 14)
        np.testing.assert_array_equal(made.ids, oracle.ids)
        np.testing.assert_array_equal(made.offsets, oracle.offsets)
        np.testing.assert_array_equal(made.seconds, oracle.seconds)


# ---- the loop ---------------------------------------------------------------------------------------------


def trainer(folder: Path, *, passes: int = 2, origin: dict[str, Any] | None = None, **settings: Any) -> CrossTrainer:
    """Which passage has the words of the query?"""
    network = NetworkConfig(64, 16, 2, 2, 32, 60, first_position=0, types=2)
    model = CrossModel(CrossConfig(network, 60, token_types=True))
    initialise(model, std=0.3, seed=1)
    groups = candidates(table(), 4, seed=0)
    plan = [rows for seed in range(passes) for rows in group_plan(groups, budget=700, window=60, seed=seed)]
    usual: dict[str, Any] = {"body_lr": 4e-3, "head_lr": 4e-3, "log_every": 1, "checkpoint_every": 4}
    frame = Frame(0, (2,), 2, 60)
    return CrossTrainer(
        model, groups, plan, CrossSettings(**(usual | settings)), folder, frame, device="cpu", origin=origin
    )


def test_it_learns(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []
    trainer(tmp_path, passes=10, precision="float32").run(lines.append)
    begin, end = lines[:5], lines[-5:]
    assert np.mean([line["listwise"] for line in end]) < 0.7 * np.mean([line["listwise"] for line in begin])
    assert np.mean([line["first"] for line in end]) > 0.6


def test_logits_are_those_of_the_encoder(tmp_path: Path) -> None:
    """The packed batch of training against the pairs one by one."""
    run = trainer(tmp_path, precision="float32")
    rows = run.plan[0][:3]
    together = run.logits(rows)
    alone = torch.cat([run.logits(rows[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert len(together) == 12


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    lines: list[float] = []
    whole.run(lambda line: lines.append(line["total"]))

    class Stop(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 7:  # the last checkpoint is of step 4
            raise Stop

    with pytest.raises(Stop):
        trainer(tmp_path / "cut").run(stop)
    rest = trainer(tmp_path / "cut")
    assert rest.resume()
    assert rest.step == 4
    later: list[float] = []
    rest.run(lambda line: later.append(line["total"]))
    assert later == lines[4:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert not run.resume()
    run.save()
    with pytest.raises(CheckpointError, match=r"was written with body_lr 0.004, now it is 0.1"):
        trainer(tmp_path, body_lr=0.1).resume()
    other = trainer(tmp_path)
    other.plan = other.plan[1:]
    with pytest.raises(CheckpointError, match="another plan"):
        other.resume()
    with pytest.raises(CheckpointError, match=r"was written with loss\.contrast 'listwise', now it is 'pointwise'"):
        trainer(tmp_path, loss=CrossLoss("pointwise")).resume()
    trainer(tmp_path, origin={"max_tokens": 60}).save()
    with pytest.raises(CheckpointError, match="was written with max_tokens 60, now it is 50"):
        trainer(tmp_path, origin={"max_tokens": 50}).resume()
    assert not trainer(tmp_path, origin={"max_tokens": 50}).resume(anew=True)
    assert trainer(tmp_path, origin={"max_tokens": 60}, minutes=1.0).resume()
    trainer(tmp_path).path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError):
        trainer(tmp_path).resume()
    assert not trainer(tmp_path).resume(anew=True)


def test_a_report_over_a_checkpoint_has_the_steps_before_it(tmp_path: Path) -> None:
    def means(run: CrossTrainer, until: int = 0) -> list[float]:
        found: list[float] = []

        def report(line: dict[str, float]) -> None:
            if line["step"] == until:
                raise KeyboardInterrupt
            found.append(line["total"])

        with pytest.raises(KeyboardInterrupt) if until else nullcontext():
            run.run(report)
        return found

    often: dict[str, Any] = {"checkpoint_every": 3, "log_every": 2}
    expected = means(trainer(tmp_path / "whole", **often))
    first = means(trainer(tmp_path / "cut", **often), until=4)
    rest = trainer(tmp_path / "cut", **often)
    assert rest.resume()
    assert rest.step == 3
    assert first + means(rest) == expected


# ---- from files to a folder -------------------------------------------------------------------------------


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
    again = train_cross(settings, base=root, force=True)  # the run had ended; its checkpoint is written once more
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


def test_settings_are_checked_before_the_work(tmp_path: Path) -> None:
    own(tmp_path / "start")
    write_data(tmp_path / "data.jsonl")
    base: dict[str, Any] = {"data": {"files": ["data.jsonl"]}, "output": "made", "model": "start"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": 600}, "max_tokens is 600; start reads 64"),
        ({"lr": 1}, "unknown setting 'lr'"),
        ({"kind": "three"}, "kind"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"data": {"files": []}}, "files is empty"),
        ({"train": {"precision": "int4"}}, "precision must be auto, float32 or bfloat16"),
        ({"train": {"body_lr": math.nan}}, "body_lr must be a finite number; got nan"),
        ({"train": {"loss": {"distil_weight": -1}}}, "distil_weight must not be negative; got -1"),
        ({"data": {"files": ["data.jsonl"], "budget": 0}}, "budget must be positive; got 0"),
        ({"seed": -1}, "seed must not be negative; got -1"),
    ]
    for change, message in cases:
        with pytest.raises(ConfigError, match=message):
            train_cross(base | change, base=tmp_path)
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
