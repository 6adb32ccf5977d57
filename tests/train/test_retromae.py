from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.small import SPECIAL, VOCAB, model, tokens
from torch.nn.functional import cross_entropy

from threefold.encoder.attention import Layout
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.tokenizer import Tokens
from threefold.train.loop import TrainSettings
from threefold.train.packed import Packed
from threefold.train.retromae import MASKED, SEEN, Decoder, RetroMAE, draw_masks, word_loss

MASK = 63


def texts(n: int = 24) -> Tokens:
    rng = np.random.default_rng(0)
    return tokens([[0, *rng.integers(4, VOCAB - 1, int(rng.integers(5, 12))).tolist(), 2] for _ in range(n)])


def trainer(folder: Path, steps: int = 4, **changes: float) -> RetroMAE:
    settings = TrainSettings(log_every=1, precision="float32", **changes)  # type: ignore[arg-type]
    plan = [np.arange(step % 2, 24, 2) for step in range(steps)]
    return RetroMAE(model(), texts(), plan, settings, folder, special=SPECIAL, mask_id=MASK)


def rngs(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(n)]


# ---- masks -------------------------------------------------------------------------------------------------


def test_the_encoder_is_denied_so_many_tokens_and_no_special_one() -> None:
    layout, known = Layout.of(np.full(200, 50)), np.ones(10_000, bool)
    known[layout.offsets[:-1]] = False
    masks = draw_masks(layout, known, rngs(200))
    assert not masks.encoder[~known].any()
    assert masks.encoder[known].mean() == pytest.approx(MASKED, abs=0.02)


def test_what_the_decoder_sees() -> None:
    """Every place the vector, no place itself, half of the rest; the places of a text differ in what they see."""
    layout = Layout.of(np.array([3, 3, 40]))
    masks = draw_masks(layout, np.ones(46, bool), rngs(3))
    assert [mask.shape for mask in masks.decoder] == [(2, 3, 3), (1, 40, 40)]
    for mask in masks.decoder:
        assert mask[:, :, 0].all()
        own = mask[:, np.arange(mask.shape[1]), np.arange(mask.shape[1])]
        assert not own[:, 1:].any()
    large = masks.decoder[1][0]
    others = ~np.eye(40, dtype=bool)
    others[:, 0] = False
    assert large[others].mean() == pytest.approx(SEEN, abs=0.05)
    assert len(np.unique(large, axis=0)) == 40


def decoded(words: torch.Tensor, vector: torch.Tensor, mask: list[list[bool]]) -> torch.Tensor:
    torch.manual_seed(1)
    decoder = Decoder(NetworkConfig(vocab=8, hidden=4, layers=1, heads=2, ffn=8, positions=9))
    initialise(decoder, std=0.5)
    places = torch.randn(3, 4)
    layout = Layout.of(np.array([3]))
    states: torch.Tensor = decoder(vector, words, places, layout, [torch.tensor([mask])])
    return states.detach()


def test_a_place_depends_on_what_it_sees_and_on_nothing_else() -> None:
    """By hand: place 1 sees the vector only, place 2 the vector and word 1."""
    mask = [[True, False, False], [True, False, False], [True, True, False]]
    words, vector = torch.randn(3, 4), torch.randn(1, 4)
    before = decoded(words, vector, mask)
    for place, changed in ((0, []), (1, [2]), (2, [])):
        other = words.clone()
        other[place] += 1.0
        differs = [i for i in range(3) if not torch.equal(decoded(other, vector, mask)[i], before[i])]
        assert differs == changed, place  # word 0 is replaced by the vector
    assert all(not torch.equal(a, b) for a, b in zip(decoded(words, vector + 1, mask), before, strict=True))


def test_texts_without_a_token_to_hide_are_no_error(tmp_path: Path) -> None:
    empty = tokens([[0, 2], [0, 2], [0, 9, 2]])
    settings = TrainSettings(log_every=1, precision="float32")
    run = RetroMAE(model(), empty, [np.arange(2), np.arange(3)], settings, tmp_path, special=SPECIAL, mask_id=MASK)
    logs: list[dict[str, float]] = []
    run.run(logs.append)
    assert logs[0]["total"] == 0.0
    assert logs[1]["total"] > 0.0


# ---- losses ------------------------------------------------------------------------------------------------


def test_word_loss_is_the_cross_entropy_of_the_whole_table() -> None:
    states, words, ids = torch.randn(2_500, 3, requires_grad=True), torch.randn(7, 3), torch.randint(0, 7, (2_500,))
    loss = word_loss(states, words, ids)
    expected = cross_entropy(states @ words.T, ids)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, states), torch.autograd.grad(expected, states))
    assert word_loss(states[:0], words, ids[:0]).item() == 0.0


def test_the_encoder_does_not_see_what_it_must_predict(tmp_path: Path) -> None:
    """Other tokens at the hidden places change what is asked for, not what is read: the vector stays the same."""
    run = trainer(tmp_path)
    packed = Packed.of([np.array([0, 9, 10, 11, 2])])
    other = Packed.of([np.array([0, 9, 33, 11, 2])])
    known = ~np.isin(packed.ids, SPECIAL)
    masks = draw_masks(packed.layout, known, rngs(1))
    masks.encoder[:] = [False, False, True, False, False]
    seen: list[torch.Tensor] = []
    hook = run.model.network.layers[-1].register_forward_hook(lambda *given: seen.append(given[-1].detach()))
    for texts_ in (packed, other):
        run.losses(texts_, masks, known)
    hook.remove()
    assert torch.equal(seen[0], seen[1])


def test_a_text_is_learnt_by_heart(tmp_path: Path) -> None:
    logs: list[dict[str, float]] = []
    trainer(tmp_path, 80, body_lr=5e-3, word_lr=2e-2, head_lr=5e-3).run(logs.append)
    early, late = (np.mean([log["decoder"] for log in part]) for part in (logs[:4], logs[-4:]))
    assert late < 0.8 * early


def test_the_decoder_is_drawn_on_the_cpu_for_every_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU refuses the CPU's random numbers. Here a device without memory stands for it."""
    drawn_on: list[str] = []

    def noted(module: torch.nn.Module, seed: int) -> None:
        drawn_on.extend({parameter.device.type for parameter in module.parameters()})

    monkeypatch.setattr("threefold.train.retromae.initialise", noted)
    settings, far = TrainSettings(precision="float32"), model().to("meta")
    run = RetroMAE(far, texts(), [np.arange(24)], settings, tmp_path, special=SPECIAL, mask_id=MASK)
    assert drawn_on == ["cpu"]
    assert {parameter.device.type for parameter in run.decoder.parameters()} == {"meta"}


def test_it_resumes_exactly(tmp_path: Path) -> None:
    whole: list[dict[str, float]] = []
    trainer(tmp_path / "whole").run(whole.append)

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", checkpoint_every=2).run(stop)
    second = trainer(tmp_path / "parts", checkpoint_every=2)
    assert second.resume()
    rest: list[dict[str, float]] = []
    second.run(rest.append)
    assert [log["total"] for log in rest] == [log["total"] for log in whole[2:]]
