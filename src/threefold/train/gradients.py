"""Gradients of one step. The representations are a border: the loss sees leaves, and its gradients on them go back.

    texts -> network -> representations | leaves -> (of all devices) -> loss
                                        | gradients <- (of all devices) <- loss

With the border, a batch need not be in the network at once (GradCache: Gao et al. 2021, arXiv 2101.06983, here over
all three outputs) and devices exchange representations without a hidden collective in the backward pass. Nothing in
the network is random, so reading a text twice gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from threefold.train.packed import Packed
from threefold.train.questions import Questions
from threefold.train.reader import Reader, joined
from threefold.train.scores import Side
from threefold.train.world import World

#: Queries of this device and passages of all -> loss, to which `backward` is applied.
Loss = Callable[[Side, Side], Tensor]


def backward(asked: Questions, reader: Reader, world: World, loss: Loss, sub_tokens: int = 0) -> None:
    """Add the gradients of all devices' losses on what this device read to those of the parameters.

    They still have to be summed over the devices.

    sub_tokens  tokens that are in the network at a time; 0: all
    """
    packs = [list(texts.split(sub_tokens)) for texts in (asked.queries, asked.own)]
    cached = any(len(pack) > 1 for pack in packs)
    with torch.set_grad_enabled(not cached):
        made = [joined([reader(texts) for texts in pack]) for pack in packs]
    q, p = _leaves(made[0].tensors, made[0]), _gathered(made[1], asked, world)
    torch.autograd.backward(loss(q, p))
    wanted = [[_gradient(leaf) for leaf in q.tensors], _own_gradients(p, asked, world)]
    del q, p
    for side, pack, gradients in zip(made, packs, wanted, strict=True):
        if cached:
            _read_again(reader, pack, gradients)
        else:
            _continue(side, gradients)


def _leaves(tensors: Sequence[Tensor], like: Side) -> Side:
    dense, weights, multi = (tensor.detach().requires_grad_() for tensor in tensors)
    return like.holding(dense, weights, multi)


def _gathered(own: Side, asked: Questions, world: World) -> Side:
    """The passages of all devices, as leaves."""
    if world.size == 1:
        return _leaves(own.tensors, own)
    whole = Packed.joined(asked.passages)
    dense, weights, multi = (world.gather(t.detach(), n) for t, n in zip(own.tensors, _rows(asked), strict=True))
    ids = torch.from_numpy(whole.ids).to(own.ids)
    return _leaves((dense, weights, multi), Side(dense, weights, multi, ids, whole.layout))


def _own_gradients(p: Side, asked: Questions, world: World) -> list[Tensor]:
    if world.size == 1:
        return [_gradient(leaf) for leaf in p.tensors]
    return [world.own_gradient(_gradient(t), rows) for t, rows in zip(p.tensors, _rows(asked), strict=True)]


def _rows(asked: Questions) -> tuple[list[int], list[int], list[int]]:
    """Rows of dense, weights and multi on every device."""
    texts, tokens = [len(one) for one in asked.passages], [len(one.ids) for one in asked.passages]
    return texts, tokens, tokens


def _read_again(reader: Reader, pack: Sequence[Packed], gradients: Sequence[Tensor]) -> None:
    dense, weights, multi = gradients
    texts, tokens = [len(part) for part in pack], [len(part.ids) for part in pack]
    cut = zip(torch.split(dense, texts), torch.split(weights, tokens), torch.split(multi, tokens), strict=True)
    for part, wanted in zip(pack, cut, strict=True):
        _continue(reader(part), wanted)


def _continue(side: Side, gradients: Sequence[Tensor]) -> None:
    """From the representations into the network; what hangs on no trained parameter is left out."""
    pairs = [(t, g) for t, g in zip(side.tensors, gradients, strict=True) if t.requires_grad]
    if pairs:
        torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
