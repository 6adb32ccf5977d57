"""Training, with everything that is of a device: the same gradients, every arithmetic, whole recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.gpu.pretend import Far, Gpu
from tests.gpu.test_encoder import HOPPER, TURING, VARLEN, close
from tests.train.small import SPECIAL, VOCAB, batches, gradients_of, hard_trainer, model, table
from tests.train.test_cross_loop import trainer as cross_trainer
from tests.train.test_retromae import MASK, texts
from tests.train.test_run import recipe
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from threefold import Encoder
from threefold.errors import ConfigError
from threefold.train import retromae
from threefold.train.cross_loop import CrossTrainer
from threefold.train.loop import Trainer, TrainSettings
from threefold.train.recipe import read_recipe
from threefold.train.retromae import RetroMAE
from threefold.train.run import train
from threefold.train.world import World
from threefold.types import Floats


def on(device: str, folder: Path, **changes: object) -> Trainer:
    settings = TrainSettings(log_every=1, idf_steps=10, **changes)  # type: ignore[arg-type]
    idf = np.linspace(0, 5, VOCAB, dtype=np.float32)
    return Trainer(model(), table(), batches(1), settings, folder, special=SPECIAL, idf=idf, device=device)


def losses(run: Trainer | RetroMAE | CrossTrainer) -> list[float]:
    totals: list[float] = []
    run.run(lambda line: totals.append(line["total"]))
    return totals


def weights(run: Trainer | RetroMAE) -> dict[str, Floats]:
    return {name: p.detach().cpu().numpy() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("changes", [{}, {"sub_tokens": 40}, {"recompute": True}])
def test_the_same_steps_as_on_the_cpu(gpu: Gpu, tmp_path: Path, changes: dict[str, object]) -> None:
    far, near = (on(device, tmp_path / device, precision="float32", **changes) for device in ("cuda", "cpu"))
    assert all(isinstance(weight, Far) for weight in far.model.parameters())
    np.testing.assert_allclose(losses(far), losses(near), rtol=1e-4)
    for name, found in weights(far).items():
        np.testing.assert_allclose(found, weights(near)[name], atol=1e-4, err_msg=name)
    assert VARLEN not in gpu.ops


@pytest.mark.parametrize(("capability", "scaled"), [(HOPPER, False), (TURING, True)], ids=["bfloat16", "float16"])
def test_mixed_precision_learns_too(gpu: Gpu, tmp_path: Path, capability: tuple[int, int], scaled: bool) -> None:
    far, near = on("cuda", tmp_path / "far"), on("cpu", tmp_path / "near", precision="float32")
    assert far.scaler.is_enabled() == scaled
    np.testing.assert_allclose(losses(far), losses(near), rtol=0.1)  # in float16 steps may be left out
    assert (VARLEN in gpu.ops) == (not scaled)  # and its backward pass
    assert all(p.dtype == torch.float32 for p in far.model.parameters())


def test_every_part_of_the_objective(gpu: Gpu, tmp_path: Path) -> None:
    found = {}
    for device in ("cuda", "cpu"):
        run = hard_trainer(tmp_path / device, device=device)
        run.gradients(run.plan[0])
        found[device] = {name: gradient.cpu() for name, gradient in gradients_of(run).items()}
    assert found["cuda"].keys() == found["cpu"].keys()
    for name, gradient in found["cuda"].items():
        torch.testing.assert_close(gradient, found["cpu"][name], atol=1e-6, rtol=1e-3)  # the CPU attends in float32


def test_nobody_asks_the_gpu_how_many_tokens_there_are(gpu: Gpu, tmp_path: Path) -> None:
    run = hard_trainer(tmp_path, device="cuda")
    gpu.waits.clear()
    run.gradients(run.plan[0])
    assert "aten.repeat_interleave.Tensor" in gpu.ops
    assert "aten.repeat_interleave.Tensor" not in gpu.waits


def test_a_process_too_many_is_told_so(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="process 1 of this machine has no GPU: PyTorch sees 1; start 1"):
        World.from_environment(torch.device("cuda"))


def test_a_checkpoint_of_the_gpu_goes_on_there(gpu: Gpu, tmp_path: Path) -> None:
    changes = {"precision": "float32", "checkpoint_every": 2}
    whole = losses(on("cuda", tmp_path / "whole", **changes))

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on("cuda", tmp_path / "cut", **changes).run(stop)
    rest = on("cuda", tmp_path / "cut", **changes)
    rest.resume()
    assert all(isinstance(weight, Far) for weight in rest.model.parameters())
    begun = rest.step
    assert 0 < begun < len(whole)
    np.testing.assert_allclose(losses(rest), whole[begun:], rtol=1e-6)


def test_retromae(gpu: Gpu, tmp_path: Path) -> None:
    def run(device: str) -> RetroMAE:
        settings = TrainSettings(log_every=1, precision="float32")
        small = model().to(device)
        return RetroMAE(small, texts(), [np.arange(24)] * 3, settings, tmp_path / device, special=SPECIAL, mask_id=MASK)

    far, near = run("cuda"), run("cpu")
    np.testing.assert_allclose(losses(far), losses(near), rtol=1e-4)


def test_retromae_leaves_out_the_kernel_that_plans_for_every_shape(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[bool] = []

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        planned.append(torch._C._get_cudnn_sdp_enabled())
        return scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(retromae, "scaled_dot_product_attention", attention)
    for device, wanted in (("cuda", False), ("cpu", True)):
        planned.clear()
        small = model().to(device)
        settings = TrainSettings(precision="float32")
        losses(RetroMAE(small, texts(), [np.arange(24)], settings, tmp_path / device, special=SPECIAL, mask_id=MASK))
        assert set(planned) == {wanted}
    assert torch._C._get_cudnn_sdp_enabled()  # as it was


def test_a_cross_encoder(gpu: Gpu, tmp_path: Path) -> None:
    far, near = (cross_trainer(tmp_path / device, device=device, precision="float32") for device in ("cuda", "cpu"))
    np.testing.assert_allclose(losses(far), losses(near), rtol=1e-4)
    mixed = cross_trainer(tmp_path / "mixed", device="cuda", passes=1)
    assert np.isfinite(losses(mixed)).all()
    assert VARLEN in gpu.ops


@pytest.mark.parametrize("lora", [None, {"rank": 2, "layers": ["qkv", "down"]}], ids=["whole", "adapters"])
def test_a_whole_recipe(gpu: Gpu, place: Path, lora: dict[str, object] | None) -> None:
    changes = {} if lora is None else {"lora": lora}
    validation = {"sets": ["dev"], "every": 2}
    for device in ("cuda", "cpu"):
        wanted = recipe(output=f"out-{device}", device=device, validation=validation, teacher="tiny", **changes)
        train(read_recipe(wanted), place)
    made = [Encoder(place / f"out-{device}", device="cpu", precision="float32") for device in ("cuda", "cpu")]
    far, near = (encoder.encode(["the quick brown fox", "numbers"]) for encoder in made)
    close(far, near, 0.999)
