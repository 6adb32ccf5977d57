from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import bge_m3, sentence_transformer

from threefold.encoder.checkpoint import Model, ModelConfig, load, quantise_rows, save
from threefold.encoder.cross_model import load_cross
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.errors import CheckpointError, ConfigError, InputError, NumericalError

WORDS = "embeddings.word_embeddings.weight"
VALUE = "encoder.layer.1.attention.self.value.weight"


def edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def edit_bin(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def small_model(**heads: Any) -> Model:
    network = NetworkConfig(vocab=50, hidden=16, layers=2, heads=2, ffn=32, positions=20)
    config = ModelConfig(network, HeadsConfig(**({"multi_dim": 8} | heads)), 18, matryoshka=(8,), name="small")
    model = Model(config)
    initialise(model, std=0.5)
    return model


#: Matrices of `wide_model` that are kept in four bits.
FOUR_BIT = ("network.words.weight", "network.layers.0.up.weight", "network.layers.1.up.weight")


def wide_model() -> Model:
    """Rows of one block of four-bit numbers."""
    network = NetworkConfig(vocab=50, hidden=32, layers=2, heads=2, ffn=64, positions=20)
    model = Model(ModelConfig(network, HeadsConfig(multi_dim=8), 18, name="wide"))
    initialise(model, std=0.5)
    return model


# ---- foreign layouts -------------------------------------------------------------------------------------


def test_all_files_of_one_backbone_give_one_model(m3_folder: Path, tmp_path: Path) -> None:
    first = load(m3_folder)
    for weights in ("safetensors", "shards"):
        other = load(bge_m3(tmp_path / weights / m3_folder.name, weights=weights))
        assert other.hash == first.hash
        for name, tensor in first.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name])


def test_weights_of_a_whole_task_model_carry_a_prefix(m3_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(m3_folder, tmp_path / "model")
    state = torch.load(m3_folder / "pytorch_model.bin", weights_only=True)
    torch.save({f"roberta.{name}": tensor for name, tensor in state.items()}, tmp_path / "model/pytorch_model.bin")
    loaded, first = load(tmp_path / "model").model, load(m3_folder).model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), first.parameters(), strict=True))


def test_a_smaller_projection_of_the_multi_head(tmp_path: Path) -> None:
    loaded = load(bge_m3(tmp_path / "model", multi_dim=8))
    assert loaded.model.config.heads.multi_dim == 8


def test_sizes_and_settings(m3_folder: Path, st_folder: Path) -> None:
    config = load(m3_folder).model.config
    assert (config.network.first_position, config.max_tokens, config.heads.pooling) == (2, 8192, "cls")
    assert config.name == m3_folder.name
    config = load(st_folder).model.config
    assert (config.network.first_position, config.max_tokens, config.heads.pooling) == (0, 20, "mean")
    assert (config.query_prompt, config.document_prompt) == ("query: ", "passage: ")
    assert load(st_folder).missing == {"sparse": "sparse_linear.pt", "multi": "colbert_linear.pt"}


def test_the_newer_words_of_sentence_transformers(st_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(st_folder, tmp_path / "model")
    (tmp_path / "model/1_Pooling/config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "lasttoken"}')
    (tmp_path / "model/sentence_bert_config.json").unlink()
    (tmp_path / "model/tokenizer_config.json").write_text('{"model_max_length": 33}')
    config = load(tmp_path / "model").model.config
    assert (config.heads.pooling, config.max_tokens) == ("last", 33)


def test_a_bare_backbone_needs_a_pooling(m3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(m3_folder, folder, ignore=shutil.ignore_patterns("*.pt"))
    with pytest.raises(CheckpointError, match=r'does not say how its dense vector is pooled.*pooling="cls"'):
        load(folder)
    assert load(folder, "mean").model.config.heads == HeadsConfig("mean", True, False, 0)
    with pytest.raises(ConfigError, match="'median' is not one of"):
        load(folder, "median")


def test_the_caller_may_know_the_pooling_better_and_all_else_stays(st_folder: Path) -> None:
    for pooling in ("mean", "cls"):
        config, declared = load(st_folder, pooling).model.config, load(st_folder).model.config
        assert config == replace(declared, heads=replace(declared.heads, pooling=pooling))


def test_the_caller_may_know_the_prompts_better(m3_folder: Path) -> None:
    """Other prompts give other vectors, so it is another model; those that are declared anyway change nothing."""
    plain, same = load(m3_folder), load(m3_folder, query_prompt="", document_prompt="")
    told = load(m3_folder, query_prompt="query: ")
    assert same.hash == plain.hash
    assert told.hash != plain.hash
    assert (told.config.query_prompt, told.config.document_prompt) == ("query: ", "")


def test_prompts_that_would_be_pooled_are_refused(st_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(st_folder, folder)
    path = folder / "1_Pooling/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    load(folder, query_prompt="", document_prompt="")
    with pytest.raises(CheckpointError, match="include_prompt false is not supported with prompts"):
        load(folder, query_prompt="query: ", document_prompt="")


def test_of_a_chain_that_we_do_not_know_the_backbone_is_read_if_the_pooling_is_given(
    st_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(st_folder, folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "2_Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="Dense are not supported"):
        load(folder)
    assert load(folder, "cls").model.config.heads == HeadsConfig("cls", True, False, 0)


def test_the_caller_may_choose_the_pooling_of_a_bge_m3(m3_folder: Path) -> None:
    assert load(m3_folder, "mean").model.config.heads == HeadsConfig("mean", True, True, 32)


def test_settings_count_in_the_fingerprint(m3_folder: Path, tmp_path: Path) -> None:
    assert load(m3_folder).hash != load(m3_folder, "mean").hash
    other = bge_m3(tmp_path / "model")
    assert load(other).hash == load(m3_folder).hash  # the folder's name does not
    edit_bin(other / "sparse_linear.pt", lambda state: state["bias"].add_(0.5))
    assert load(other).hash != load(m3_folder).hash


# ---- our layout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [{}, {"sparse": False}, {"multi_dim": 0}])
def test_saved_and_loaded(tmp_path: Path, heads: dict[str, Any]) -> None:
    model = small_model(**heads)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.model.config == model.config
    assert sorted(loaded.missing) == [{"sparse": "sparse", "multi_dim": "multi"}[key] for key in heads]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.safetensors", "threefold.json"]


def test_int8_is_four_times_smaller_and_close(tmp_path: Path) -> None:
    model = small_model()
    save(model, tmp_path / "float")
    save(model, tmp_path / "int8", int8=True)
    loaded = load(tmp_path / "int8").model
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2:
            bound = tensor.abs().amax(dim=1, keepdim=True) / 127 / 2  # half a step of each row
            assert ((loaded.state_dict()[name] - tensor).abs() <= bound + 1e-7).all()
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored["network.words.weight"].dtype == torch.int8
    assert load(tmp_path / "int8").hash != load(tmp_path / "float").hash


def test_four_bits_are_eight_times_smaller_and_close(tmp_path: Path) -> None:
    model = wide_model()
    save(model, tmp_path, int8=True, four_bit=FOUR_BIT)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["network.words.weight"].shape == (50, 16)
    assert stored["network.layers.1.up.weight"].dtype == torch.uint8
    assert stored["network.layers.1.qkv.weight"].dtype == torch.int8
    loaded = load(tmp_path).model
    for name in FOUR_BIT:
        before, after = model.state_dict()[name], loaded.state_dict()[name]
        assert torch.cosine_similarity(before, after).min() > 0.99
    save(loaded, tmp_path / "again", int8=True, four_bit=FOUR_BIT)
    again = load(tmp_path / "again").model.state_dict()
    assert all(torch.equal(again[name], loaded.state_dict()[name]) for name in FOUR_BIT)


def test_a_foreign_checkpoint_becomes_ours(m3_folder: Path, tmp_path: Path) -> None:
    model = load(m3_folder).model
    save(model, tmp_path / "model")
    ours = load(tmp_path / "model").model
    assert ours.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_model_may_be_read_by_whoever_may_read_its_settings(tmp_path: Path) -> None:
    save(small_model(), tmp_path)
    modes = {(tmp_path / name).stat().st_mode for name in ("model.safetensors", "threefold.json")}
    assert len(modes) == 1


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(small_model(), tmp_path)
    first = load(tmp_path)
    values = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    other = small_model()
    initialise(other, seed=7)
    save(other, tmp_path)
    assert load(tmp_path).hash != first.hash
    for name, tensor in first.model.state_dict().items():  # the old file stays mapped under the old model
        assert torch.equal(tensor, values[name])


def test_nan_is_not_saved(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.network.words.weight[3, 3] = torch.nan
    with pytest.raises(NumericalError, match=r"network\.words\.weight has NaN"):
        save(model, tmp_path / "model", int8=True)
    assert not (tmp_path / "model").exists()


def test_quantised_rows_by_hand() -> None:
    numbers, scales = quantise_rows(torch.tensor([[127.0, -63.6, 0.2], [0.0, 0.0, 0.0]]))
    assert numbers.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert scales[0] == 127.0 / 127.0
    assert (numbers.float() * scales[:, None])[1].tolist() == [0.0, 0.0, 0.0]


# ---- broken checkpoints ----------------------------------------------------------------------------------


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is not a model: it has neither threefold\.json nor config\.json"):
        load(tmp_path)


BROKEN_M3: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (
        lambda f: (f / "pytorch_model.bin").unlink(),
        r"has no weights: expected model\.safetensors or pytorch_model\.bin",
    ),
    "missing tensor": (
        lambda f: edit_bin(f / "pytorch_model.bin", lambda s: s.pop(VALUE)),
        rf"pytorch_model\.bin lacks the tensor {VALUE}",
    ),
    "missing words": (
        lambda f: edit_bin(f / "pytorch_model.bin", lambda s: s.pop(WORDS)),
        rf"expected one tensor ending in {WORDS}, found 0",
    ),
    "wrong shape": (
        lambda f: edit_bin(f / "pytorch_model.bin", lambda s: s.update({VALUE: torch.zeros(32, 7)})),
        rf"tensor {VALUE} has shape \(32, 7\), the configuration asks for \(32, 32\)",
    ),
    "shapes that add up": (
        lambda f: edit_bin(f / "pytorch_model.bin", lambda s: s.update({VALUE: torch.zeros(31, 32)})),
        rf"tensor {VALUE} has shape \(31, 32\)",
    ),
    "truncated weights": (
        lambda f: (f / "pytorch_model.bin").write_bytes((f / "pytorch_model.bin").read_bytes()[:5_000]),
        r"cannot read .*pytorch_model\.bin",
    ),
    "empty weights": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), r"cannot read .*pytorch_model\.bin"),
    "weights of noise": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x02noise"),
        r"cannot read .*pytorch_model\.bin",
    ),
    "weights that run code": (
        lambda f: torch.save({"x": Path("/")}, f / "pytorch_model.bin"),
        r"cannot read .*pytorch_model\.bin: it is damaged, or holds more than tensors \(pathlib.*\), which is never",
    ),
    "weights that are a list": (
        lambda f: torch.save([torch.zeros(1)], f / "pytorch_model.bin"),
        "expected a dictionary of tensors, got list",
    ),
    "head without bias": (
        lambda f: edit_bin(f / "sparse_linear.pt", lambda s: s.pop("bias")),
        r"sparse_linear\.pt lacks the tensor bias",
    ),
    "head without weight": (
        lambda f: edit_bin(f / "colbert_linear.pt", lambda s: s.pop("weight")),
        r"colbert_linear\.pt lacks the tensor weight",
    ),
    "head of another size": (
        lambda f: edit_bin(f / "sparse_linear.pt", lambda s: s.update(weight=torch.zeros(1, 31))),
        r"sparse_linear\.pt: tensor weight has shape \(1, 31\), the configuration asks for \(1, 32\)",
    ),
    "corrupt config": (lambda f: (f / "config.json").write_text("{"), r"cannot read .*config\.json"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"cannot read .*config\.json"),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object, got list"),
    "other family": (lambda f: edit_json(f / "config.json", model_type="t5"), "model_type 't5' is not supported"),
    "no family": (lambda f: edit_json(f / "config.json", model_type=None), "model_type None is not supported"),
    "other activation": (
        lambda f: edit_json(f / "config.json", hidden_act="relu"),
        "hidden_act 'relu' is not supported; expected 'gelu'",
    ),
    "relative positions": (
        lambda f: edit_json(f / "config.json", position_embedding_type="relative_key"),
        "position_embedding_type 'relative_key' is not supported",
    ),
    "no size": (lambda f: edit_json(f / "config.json", hidden_size=None), "lacks the setting 'hidden_size'"),
    "size of text": (
        lambda f: edit_json(f / "config.json", hidden_size="big"),
        r"config\.json\.hidden: expected int, got 'big'",
    ),
    "no heads": (lambda f: edit_json(f / "config.json", num_attention_heads=0), "heads must be at least 1; got 0"),
    "odd heads": (lambda f: edit_json(f / "config.json", num_attention_heads=5), "32 is not a multiple of 5 heads"),
}


@pytest.mark.parametrize("case", BROKEN_M3)
def test_broken_bge_m3(m3_folder: Path, tmp_path: Path, case: str) -> None:
    damage, message = BROKEN_M3[case]
    shutil.copytree(m3_folder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model")


BROKEN_ST: dict[str, tuple[Callable[[Path], Any], str]] = {
    "corrupt safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header"),
        r"cannot read .*model\.safetensors",
    ),
    "truncated safetensors": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        r"cannot read .*model\.safetensors",
    ),
    "other pooling": (
        lambda f: edit_json(f / "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True),
        r"pooling \['max_tokens'\] is not supported",
    ),
    "two poolings": (
        lambda f: edit_json(f / "1_Pooling/config.json", pooling_mode_cls_token=True),
        "is not supported; known are",
    ),
    "poolings as a list": (
        lambda f: edit_json(f / "1_Pooling/config.json", pooling_mode=["cls", "mean"]),
        r"pooling \['cls', 'mean'\] is not supported",
    ),
    "no pooling file": (lambda f: (f / "1_Pooling/config.json").unlink(), r"cannot read .*1_Pooling/config\.json"),
    "a module too many": (
        lambda f: (f / "modules.json").write_text(json.dumps([{"type": f"x.{kind}"} for kind in ("Pooling", "Dense")])),
        "modules Pooling, Dense are not supported",
    ),
    "modules of something": (lambda f: (f / "modules.json").write_text('{"a": 1}'), "expected a list of modules"),
    "a limit too low": (
        lambda f: edit_json(f / "sentence_bert_config.json", max_seq_length=1),
        "max_tokens must be from 3 to 64; got 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_ST)
def test_broken_sentence_transformers(tmp_path: Path, case: str) -> None:
    damage, message = BROKEN_ST[case]
    folder = sentence_transformer(tmp_path / "model")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_refused_pickle_does_not_advise_to_run_it(m3_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(m3_folder, tmp_path / "model")
    for damage in (lambda file: torch.save({"x": Path("/")}, file), lambda file: file.write_bytes(b"\x80\x02noise")):
        damage(tmp_path / "model/pytorch_model.bin")
        with pytest.raises(CheckpointError) as raised:
            load(tmp_path / "model")
        assert "weights_only" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_prompt_that_is_not_pooled_is_refused(st_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(st_folder, folder)
    edit_json(folder / "1_Pooling/config.json", include_prompt=False)
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: include_prompt false is not supported with"):
        load(folder)
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "", "document": ""})
    assert load(folder).config.query_prompt == ""  # nothing to leave out


def test_lower_casing_that_the_tokenizer_does_not_do_is_refused(st_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(st_folder, folder)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    assert load(folder).hash == load(st_folder).hash
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"sentence_bert_config\.json: do_lower_case is not supported with a"):
        load(folder)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=False)
    load(folder)


@pytest.mark.parametrize("read", [load, load_cross])
def test_an_adapter_must_be_merged(st_folder: Path, tmp_path: Path, read: Callable[[Path], Any]) -> None:
    folder, alone = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(st_folder, folder)
    alone.mkdir()
    for each in (folder, alone):
        (each / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        with pytest.raises(CheckpointError, match=r"adapter_config\.json: .*Merge the adapter first"):
            read(each)


LINKS = ["sparse_linear.pt", "colbert_linear.pt", "config_sentence_transformers.json", "model.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows needs rights for links")
@pytest.mark.parametrize("read", [load, load_cross])
@pytest.mark.parametrize("name", [*LINKS, "pytorch_model.bin", "tokenizer.json", "sentencepiece.bpe.model"])
def test_a_link_to_nothing_is_not_a_file_that_is_absent(
    m3_folder: Path, tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    """A download that was interrupted: the model would open without its heads."""
    shutil.copytree(m3_folder, tmp_path / "model")
    (tmp_path / "model" / name).unlink(missing_ok=True)
    (tmp_path / "model" / name).symlink_to(tmp_path / "blobs/absent")
    with pytest.raises(CheckpointError, match=rf"model is not complete: {re.escape(name)} is a link to nothing"):
        read(tmp_path / "model")


def test_broken_shards(tmp_path: Path) -> None:
    folder = bge_m3(tmp_path / "model", weights="shards")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names model-00002-of-00002\.safetensors, which is not"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json lacks weight_map"):
        load(folder)


def edit_own(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


BROKEN_OWN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "future format": (
        lambda f: edit_json(f / "threefold.json", format=2),
        "has format 2, this threefold reads format 1; upgrade",
    ),
    "unknown setting": (lambda f: edit_json(f / "threefold.json", colour="red"), "unknown setting 'colour'"),
    "missing setting": (lambda f: edit_json(f / "threefold.json", max_tokens=None), "'max_tokens' is required"),
    "longer than positions": (lambda f: edit_json(f / "threefold.json", max_tokens=99), "from 3 to 18; got 99"),
    "wider than dense": (lambda f: edit_json(f / "threefold.json", matryoshka=[17]), "from 1 to 16; got 17"),
    "a list": (lambda f: (f / "threefold.json").write_text("[]"), "expected a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"cannot read .*model\.safetensors"),
    "missing tensor": (
        lambda f: edit_own(f, lambda s: s.pop("network.layers.1.up.bias")),
        r"lacks the tensor network\.layers\.1\.up\.bias",
    ),
    "missing scale": (
        lambda f: edit_own(f, lambda s: s.pop("heads.multi.weight.scale")),
        r"lacks the tensor heads\.multi\.weight\.scale",
    ),
    "scale of another shape": (
        lambda f: edit_own(f, lambda s: s.update({"heads.multi.weight.scale": torch.ones(1)})),
        r"heads\.multi\.weight\.scale has shape \(1,\), the configuration asks for \(8,\)",
    ),
}


@pytest.mark.parametrize(
    ("tensor", "shape", "wanted"), [("words.weight", (50, 9), (50, 16)), ("words.weight.scale", (50, 2), (50, 1))]
)
def test_broken_four_bits(tmp_path: Path, tensor: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    save(wide_model(), tmp_path, four_bit=FOUR_BIT)
    name = f"network.{tensor}"
    edit_own(tmp_path, lambda s: s.update({name: torch.zeros(shape, dtype=s[name].dtype)}))
    with pytest.raises(CheckpointError, match=re.escape(f"{name} has shape {shape}")):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(f"the configuration asks for {wanted}")):
        load(tmp_path)


@pytest.mark.parametrize("case", BROKEN_OWN)
def test_broken_own(tmp_path: Path, case: str) -> None:
    damage, message = BROKEN_OWN[case]
    save(small_model(), tmp_path, int8=True)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_our_layout_says_its_pooling(tmp_path: Path) -> None:
    save(small_model(), tmp_path)
    assert load(tmp_path, "cls").model.config.heads.pooling == "cls"
    with pytest.raises(InputError, match="says pooling 'cls'; leave out pooling='mean'"):
        load(tmp_path, "mean")


def test_sizes_of_bge_m3() -> None:
    """The published counts of parameters (m3.md, section 1), without memory."""
    with torch.device("meta"):
        model = Model(ModelConfig(NetworkConfig(), HeadsConfig(), 8192))
    assert sum(p.numel() for p in model.network.parameters()) == 566_705_152
    assert NetworkConfig().max_tokens == 8192
    with pytest.raises(ConfigError, match="leaves no room"):
        replace(NetworkConfig(), positions=4)
