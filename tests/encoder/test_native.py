"""The kernels in C against the formula of a layer, and what has to hold to the last bit."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from threefold.encoder import native as subject
from threefold.encoder.attention import Layout
from threefold.encoder.bench import passages
from threefold.encoder.compiling import BUILDS, library_of
from threefold.encoder.encoder import Encoder
from threefold.encoder.native import FOLDER, NativeLayers, choice, fits, runs, status
from threefold.encoder.network import Network, NetworkConfig, initialise
from threefold.encoder.packed import PackedNetwork
from threefold.encoder.precision import held_bytes
from threefold.encoder.stored import Stored
from threefold.errors import ConfigError, ShapeError

#: All that this processor can run, not only the one that it would.
HERE = [build for build in BUILDS if fits(build) and library_of(FOLDER, build).is_file()]
needs_kernels = pytest.mark.skipif(bool(status()), reason=f"kernels in C: {status()}")
each_build = pytest.mark.parametrize("build", HERE or [pytest.param("", marks=needs_kernels)])

#: Heads of 32 and of 64 dimensions; sizes that are one panel, and some; panels that are multiplied in parts.
SIZES = [(64, 2, 64), (192, 3, 320), (384, 12, 1536), (64, 2, 4160)]
TEXTS = ["a fox", "Ein Fuchs springt über den faulen Hund.", "狐" * 70, "x " * 200]


@cache
def network(size: tuple[int, int, int]) -> Network:
    """Two layers with norms and biases that are not those of fresh ones."""
    hidden, heads, ffn = size
    made = Network(NetworkConfig(vocab=10, hidden=hidden, layers=2, heads=heads, ffn=ffn))
    initialise(made, std=0.08)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.layers.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return made


@cache
def layers(size: tuple[int, int, int], int8: bool, build: str = "") -> NativeLayers:
    state = network(size).state_dict()
    return NativeLayers(network(size).config, lambda name: Stored(state[name]), int8, build)


def states(tokens: int, size: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.randn(tokens, size[0], generator=torch.Generator().manual_seed(seed))


def run(size: tuple[int, int, int], int8: bool, x: Tensor, lengths: list[int], build: str = "") -> Tensor:
    with torch.inference_mode():
        found: Tensor = layers(size, int8, build)(x.clone(), Layout.of(np.array(lengths)))
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- the formula -----------------------------------------------------------------------------------------


@each_build
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", [[1], [12], [64, 65], [3, 40, 129, 128, 300, 7], [1100, 5]])
@torch.inference_mode()
def test_equals_the_layers_in_float64(size: tuple[int, int, int], int8: bool, lengths: list[int], build: str) -> None:
    """Blocks of queries, keys, rows and panels of every kind: whole, more than one, and cut."""
    x = states(sum(lengths), size)
    wanted = x.double()
    for one in deepcopy(network(size).layers).double():
        wanted = one(wanted, Layout.of(np.array(lengths)))
    got = run(size, int8, x, lengths, build).double()
    assert torch.cosine_similarity(got, wanted).min() >= (0.995 if int8 else 0.9998)
    assert (got - wanted).abs().mean() <= (0.06 if int8 else 0.015) * wanted.abs().mean()


@each_build
@torch.inference_mode()
def test_attention_looks_at_all_tokens_and_at_no_other_text(build: str) -> None:
    """One key that stands out, at the end of a text that is longer than a block of keys."""
    size = SIZES[1]
    x = states(300, size)
    x[299] *= 5
    base = run(size, False, x, [300], build)
    x[299] *= -1
    moved = (run(size, False, x, [300], build) - base).abs().amax(dim=1)
    assert (moved[:299] > 1e-4).all()
    apart = [run(size, False, x, [299, 1], build)[:299] for x in (x, states(300, size))]
    assert torch.equal(*apart)


@each_build
@pytest.mark.parametrize("int8", [False, True])
@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=12), seed=st.integers(0, 5))
def test_a_text_has_the_same_bits_alone_and_in_any_batch(build: str, int8: bool, lengths: list[int], seed: int) -> None:
    x = states(sum(lengths), SIZES[1], seed)
    together = run(SIZES[1], int8, x, lengths, build)
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        assert torch.equal(run(SIZES[1], int8, x[start:end], [int(end - start)], build), together[start:end])


@each_build
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_so_it_is_for_every_size(build: str, int8: bool, size: tuple[int, int, int]) -> None:
    lengths = [5, 130, 77, 300, 12]
    texts = torch.split(states(sum(lengths), size), lengths)
    together = torch.split(run(size, int8, torch.cat(texts), lengths, build), lengths)
    for text, found in zip(texts, together, strict=True):
        assert torch.equal(run(size, int8, text, [len(text)], build), found)


@needs_kernels
def test_layer_by_layer_or_at_once_and_something_urgent_between() -> None:
    size, calls = SIZES[1], []
    urgent = run(size, False, states(5, size, 1), [5])

    def between() -> None:
        calls.append(torch.equal(run(size, False, states(5, size, 1), [5]), urgent))

    x = states(2_000, size)
    with torch.inference_mode():
        step_by_step = layers(size, False)(x.clone(), Layout.of(np.array([700, 1_300])), between)
    assert torch.equal(step_by_step, run(size, False, x, [700, 1_300]))
    assert calls == [True, True]


@each_build
@pytest.mark.parametrize("int8", [False, True])
def test_threads_change_nothing(build: str, int8: bool, threads: None) -> None:
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append([run(SIZES[2], int8, states(n, SIZES[2]), [n], build) for n in (3, 20, 60, 400)])
    for one, two, five in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


@needs_kernels
def test_several_callers_at_once() -> None:
    """A server encodes from more than one thread."""
    cases = [(n, states(n, SIZES[2], n)) for n in (5, 90, 33, 250)]
    alone = [run(SIZES[2], False, x, [n]) for n, x in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for wanted, got in zip(alone, pool.map(lambda c: run(SIZES[2], False, c[1], [c[0]]), cases), strict=True):
                assert torch.equal(got, wanted)


@each_build
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(build: str, int8: bool, bad: float) -> None:
    """Every token of its text is lost, and no other."""
    x = states(40, SIZES[0])
    x[15, 3] = bad
    y = run(SIZES[0], int8, x, [10, 20, 10], build)
    assert not torch.isfinite(y[10:30]).all(dim=1).any()
    assert torch.isfinite(y[:10]).all()
    assert torch.isfinite(y[30:]).all()


@each_build
def test_zeros_are_no_special_case(build: str) -> None:
    assert torch.isfinite(run(SIZES[0], True, torch.zeros(7, 64), [7], build)).all()


@each_build
@torch.inference_mode()
def test_the_largest_sums_of_int8(build: str) -> None:
    """All weights and inputs of a product are 127, of such signs that nothing cancels."""
    hidden, heads, ffn = SIZES[2]
    config = NetworkConfig(vocab=10, hidden=hidden, layers=1, heads=heads, ffn=ffn)
    state, signs = network(SIZES[2]).state_dict(), 1.0 - 2 * (torch.arange(hidden) % 2)
    state["layers.0.attended_norm.weight"] = torch.zeros(hidden)
    state["layers.0.attended_norm.bias"] = 3 * signs
    state["layers.0.up.weight"] = 0.01 * signs * (1 - 2 * (torch.arange(ffn) % 3 == 0).float())[:, None]
    x, layout = states(20, SIZES[2]), Layout.of(np.array([20]))
    got = NativeLayers(config, lambda name: Stored(state[name]), True, build)(x.clone(), layout)
    exact = deepcopy(network(SIZES[2]))
    exact.load_state_dict(state)
    wanted = exact.layers[0].double()(x.double(), layout)
    assert (got - wanted).abs().mean() <= 0.01 * wanted.abs().mean()


@needs_kernels
@pytest.mark.parametrize(
    "x",
    [
        states(7, SIZES[0]),
        states(8, SIZES[1]),
        states(8, SIZES[0]).bfloat16(),
        states(8, SIZES[0]).to("meta"),
        torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).T,
    ],
)
def test_states_of_another_form_are_refused(x: Tensor) -> None:
    """C would read and write behind them."""
    with pytest.raises(ShapeError, match=r"\(8, 64\) float32 on the CPU, contiguous; got"), torch.inference_mode():
        layers(SIZES[0], False)(x, Layout.of(np.array([8])))


@each_build
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_at_all(build: str, lengths: list[int]) -> None:
    assert run(SIZES[0], True, states(0, SIZES[0]), lengths, build).shape == (0, 64)


@each_build
def test_empty_texts_among_others(build: str) -> None:
    x = states(60, SIZES[0])
    assert torch.equal(run(SIZES[0], False, x, [0, 60, 0], build), run(SIZES[0], False, x, [60], build))


@needs_kernels
@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.float(),
        lambda module: module.to(torch.float64),
        lambda module: module.bfloat16(),
        lambda module: module.share_memory(),
        lambda module: module.load_state_dict(module.state_dict(), assign=True),
        lambda module: module.to_empty(device="cpu"),
    ],
)
def test_what_modules_do_with_their_weights_leaves_these_alone(move: Callable[[nn.Module], Any]) -> None:
    """C holds their addresses."""
    state = network(SIZES[0]).state_dict()
    own = NativeLayers(network(SIZES[0]).config, lambda name: Stored(state[name]), False)
    move(own)
    gc.collect()
    with torch.inference_mode():
        again = own(states(30, SIZES[0]), Layout.of(np.array([30])))
    assert torch.equal(again, run(SIZES[0], False, states(30, SIZES[0]), [30]))


@needs_kernels
def test_weights_are_counted_and_not_shared_with_their_origin() -> None:
    origin = deepcopy(network(SIZES[0]))
    packed = PackedNetwork.of(origin, "bfloat16")
    assert held_bytes(packed) > held_bytes(PackedNetwork.of(origin, "int8")) > 2 * 64 * (4 * 64 + 2 * 64)
    before = run(SIZES[0], False, states(5, SIZES[0]), [5])
    with torch.no_grad():
        for parameter in origin.layers.parameters():
            parameter.fill_(7)
    with torch.inference_mode():
        assert torch.equal(packed.at_once(states(5, SIZES[0]), Layout.of(np.array([5]))), before)


@needs_kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("int8", [False, True])
def test_weights_fill_the_memory_that_was_taken_for_them(size: tuple[int, int, int], int8: bool) -> None:
    state = network(size).state_dict()
    own = NativeLayers(network(size).config, lambda name: Stored(state[name]), int8)
    assert own.held_bytes == len(own._room.memory)
    assert not len(own._room._left)
    assert own._room.memory.data_ptr() % subject.HUGE_PAGE == 0
    with pytest.raises(ShapeError, match="64 bytes more"):  # C would write behind it
        own._room.take(64)


@needs_kernels
def test_memory_of_a_long_text_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "KEPT_BYTES", 1 << 20)
    run(SIZES[0], False, states(3_000, SIZES[0]), [1_000] * 3)
    long = len(subject._scratch.memory)
    assert long > subject.KEPT_BYTES
    run(SIZES[0], False, states(2_000, SIZES[0]), [1_000] * 2)  # not much shorter: kept
    assert len(subject._scratch.memory) == long
    run(SIZES[0], False, states(10, SIZES[0]), [10])
    assert len(subject._scratch.memory) < subject.KEPT_BYTES


# ---- in an encoder ---------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@torch.inference_mode()
def test_the_states_of_the_embedded_model_have_the_same_bits_in_any_batch(precision: str) -> None:
    encoder = Encoder(device="cpu", precision=precision)  # type: ignore[arg-type]
    assert encoder.kernels == f"native ({choice()[0]})"
    tokens = encoder.tokenizer.encode(TEXTS, max_tokens=200)
    together = encoder._states(encoder._model, tokens.ids, Layout.of(tokens.lengths))
    for i, (start, length) in enumerate(zip(tokens.offsets, tokens.lengths, strict=False)):
        alone = encoder._states(encoder._model, tokens[i], Layout.of(tokens.lengths[i : i + 1]))
        assert torch.equal(alone, together[start : start + length])


@needs_kernels
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_both_executors_agree(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is as close to float32 as PyTorch's products."""
    monkeypatch.setattr(subject, "runs", lambda config: False)
    plain = Encoder(device="cpu", precision=precision)  # type: ignore[arg-type]
    monkeypatch.undo()
    ours = Encoder(device="cpu", precision=precision)  # type: ignore[arg-type]
    assert [encoder.kernels.split(" ")[0] for encoder in (plain, ours)] == ["PyTorch", "native"]
    texts, float32 = passages(16), Encoder(device="cpu", precision="float32")
    exact, a, b = (encoder.encode(texts, max_tokens=128).dense for encoder in (float32, plain, ours))
    assert exact is not None
    assert a is not None
    assert b is not None
    assert (b * exact).sum(axis=1).mean() >= (a * exact).sum(axis=1).mean() - 5e-4


def test_float32_and_small_heads_stay_with_pytorch(m3_folder: Path) -> None:
    assert Encoder(device="cpu", precision="float32").kernels == "PyTorch"
    assert Encoder(m3_folder, device="cpu", precision="bfloat16").kernels.startswith("PyTorch (")
    assert not runs(NetworkConfig(hidden=96, heads=3))
    assert not runs(NetworkConfig(hidden=384, heads=24))
    assert runs(NetworkConfig()) == (status() == "")


# ---- whether they run ------------------------------------------------------------------------------------


FEATURES = ("avx2", "avx512", "vnni", "avx512_bf16", "amx_tile")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """What would run on a processor with these features, whose libraries are all compiled."""
    monkeypatch.delenv("THREEFOLD_NATIVE", raising=False)
    monkeypatch.setattr(subject, "_missing", lambda build: "")

    def choose(*features: str) -> tuple[str, str]:
        for feature in FEATURES:
            monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda feature=feature: feature in features)
        monkeypatch.setattr(subject, "_has_avx_vnni", lambda: "avx_vnni" in features)
        return choice.__wrapped__()

    return choose


@pytest.mark.parametrize(
    ("features", "build"),
    [
        (FEATURES[:4], "avx512_bf16"),
        (FEATURES[:3], "avx512"),
        ((FEATURES[0], "avx_vnni"), "avx_vnni"),
        (FEATURES[:1], "avx2"),
    ],
)
def test_takes_the_best_build(
    features: tuple[str, ...], build: str, processor: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processor(*features) == (build, "")
    monkeypatch.setenv("THREEFOLD_NATIVE", "avx2")
    assert processor(*features) == ("avx2", "")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ((), "no AVX2"),
        (FEATURES[:2], "AVX512 without VNNI"),
        (FEATURES, "has AMX"),
    ],
)
def test_leaves_other_processors_to_pytorch(
    features: tuple[str, ...],
    message: str,
    processor: Callable[..., tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, why = processor(*features)
    assert (build, message in why) == ("", True)
    monkeypatch.setenv("THREEFOLD_NATIVE", "avx512_bf16")  # whoever asks for a build gets it, if it can run
    can = set(FEATURES[:4]) <= set(features)
    assert processor(*features) == (("avx512_bf16", "") if can else ("", "the processor cannot run avx512_bf16"))


def test_takes_the_next_where_the_compiler_did_not_know_the_best(
    processor: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = {"avx512", "avx2"}
    monkeypatch.setattr(subject, "_missing", lambda build: "" if build in compiled else f"{build} is not compiled")
    assert processor(*FEATURES[:4]) == ("avx512", "")
    compiled.clear()
    assert processor(*FEATURES[:4]) == ("", "avx512_bf16 is not compiled")


def test_says_when_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subject, "FOLDER", tmp_path)
    assert "not compiled" in subject._missing("avx2")
    library_of(tmp_path, "avx2").write_text("no library")
    monkeypatch.setattr(subject, "_library", subject._library.__wrapped__)
    assert "cannot be loaded" in subject._missing("avx2")


def test_can_be_switched_off() -> None:
    code = "from threefold.encoder.native import status; print(status())"
    environment = os.environ | {"THREEFOLD_NATIVE": "0"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "switched off by THREEFOLD_NATIVE=0"


def test_unknown_builds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_NATIVE", "avx9")
    with pytest.raises(ConfigError, match="must be 0, 1, avx512_bf16, avx512, avx_vnni, avx2; got 'avx9'"):
        choice.__wrapped__()


@needs_kernels
def test_a_packed_network_without_them_is_the_other_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_NATIVE", "1")
    made = network(SIZES[0])
    assert PackedNetwork.of(made, "int8").native
    assert not PackedNetwork.of(made, "float32").native
    monkeypatch.setattr(subject, "status", lambda: "for this test")
    assert not PackedNetwork.of(made, "int8").native


# ---- the compiler ----------------------------------------------------------------------------------------

HOOK = Path(__file__).parents[2] / "hatch_build.py"
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("gcc") or shutil.which("clang")), reason="no C compiler here"
)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`hatch_build.py`; hatchling itself is not there when tests run."""
    for name in ("", ".builders", ".builders.hooks", ".builders.hooks.plugin", ".builders.hooks.plugin.interface"):
        monkeypatch.setitem(sys.modules, f"hatchling{name}", ModuleType(f"hatchling{name}"))
    sys.modules["hatchling.builders.hooks.plugin.interface"].BuildHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.delenv("CC", raising=False)
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources, with what an earlier build left."""
    folder = tmp_path / "c"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.so"))
    for build in BUILDS:
        library_of(folder, build).write_text("of an earlier build")
    return folder


@needs_compiler
def test_compiles_and_knows_its_sources(hook: ModuleType, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hook.compile_kernels(sources) == ""
    assert {file.name for file in sources.glob("*.so")} == {f"layer-{build}.so" for build in BUILDS}
    monkeypatch.setattr(subject, "FOLDER", sources)
    monkeypatch.setattr(subject, "_library", subject._library.__wrapped__)
    assert not any(subject._missing(build) for build in BUILDS)
    (sources / "team.h").write_text("// another")
    assert all("compiled from other sources" in subject._missing(build) for build in BUILDS)


@needs_compiler
@pytest.mark.skipif("avx512" not in HERE, reason="the processor has no AVX512-VNNI")
def test_avx_vnni_by_the_same_instructions_of_avx512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ in their encoding alone: on a processor that has only the latter, the build is made of those."""
    flags = "-O3 -std=gnu11 -fPIC -shared -mavx2 -mfma -mavx512vl -mavx512vnni -U__AVX512F__ -D__AVXVNNI__"
    same = "-D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32"
    library = library_of(tmp_path, "avx_vnni")
    subprocess.run(["cc", *flags.split(), same, FOLDER / "layer.c", "-o", library, "-lm"], check=True)
    x, lengths = states(200, SIZES[1]), [12, 60, 128]
    wanted = [run(SIZES[1], int8, x, lengths, "avx512") for int8 in (False, True)]
    monkeypatch.setattr(subject, "FOLDER", tmp_path)
    monkeypatch.setattr(subject, "_library", cache(subject._library.__wrapped__))
    for int8 in (False, True):
        torch.testing.assert_close(run(SIZES[1], int8, x, lengths, "avx_vnni"), wanted[int8], atol=0.03, rtol=0)


@needs_compiler
def test_a_compiler_that_knows_some_instructions_builds_those(
    hook: ModuleType, sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "old-cc"
    old.write_text('#!/bin/sh\ncase "$*" in *avx512bf16*) echo "unknown option" >&2; exit 1;; esac\nexec cc "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    said = hook.compile_kernels(sources)
    assert said == f"avx512_bf16: {old} failed: unknown option"
    assert {file.name for file in sources.glob("*.so")} == {f"layer-{build}.so" for build in list(BUILDS)[1:]}


@needs_compiler
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("false", "avx2: false failed"), ("/nowhere/gcc -m64", "avx2: /nowhere/gcc cannot be run: No such file")],
)
def test_a_compiler_that_fails_is_named_and_leaves_nothing(
    compiler: str, reason: str, hook: ModuleType, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert reason in hook.compile_kernels(sources)
    assert not list(sources.glob("*.so"))


def test_other_systems_are_left_alone(hook: ModuleType, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux on x86-64, not darwin" in hook.compile_kernels(sources)
    assert not list(sources.glob("*.so"))


def test_a_release_must_have_them(hook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hook, "compile_kernels", lambda folder: "no compiler")
    warnings: list[str] = []
    build = hook.KernelsHook()
    build.target_name, build.root, build.app = "wheel", str(tmp_path), SimpleNamespace(display_warning=warnings.append)
    build.initialize("standard", {})
    assert warnings == ["kernels are not compiled: no compiler"]
    monkeypatch.setenv("THREEFOLD_REQUIRE_KERNELS", "1")
    with pytest.raises(RuntimeError, match="no compiler"):
        build.initialize("standard", {})
