"""RetroMAE: the dense vector must hold a text so well that a weak decoder can write it down again.

Xiao et al. 2022 (arXiv 2205.12035). The encoder reads the text with some tokens masked and predicts them; a decoder
of one layer, thrown away afterwards, predicts every token from the vector of the first token and a random part of the
others (enhanced decoding, section 2.3). Both share the word table as output layer.
Letters: n texts of t tokens, T tokens in all, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from threefold.encoder.attention import Layout
from threefold.encoder.model import Model
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.tokenizer import Tokens
from threefold.train.packed import Packed, texts_of
from threefold.train.parts import check_lengths, freeze, parameter_groups
from threefold.train.reader import NetworkReader
from threefold.train.settings import TrainSettings
from threefold.train.updates import Updates
from threefold.train.world import World
from threefold.types import Bools, Ints

#: Part of the tokens that the encoder does not see: 15 to 30 % in the paper, 30 % for BGE-M3 (section 2.2).
MASKED: Final = 0.3
#: Part of the other tokens that the decoder sees at each place (section 2.3).
SEEN: Final = 0.5
#: Rows of the output layer at a time: (rows, vocab) numbers are never all in memory.
ROWS: Final = 1_024


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """What is hidden in one batch.

    encoder  (T,) bool: tokens that the encoder reads as the mask token
    decoder  for each run of the layout, (n, t, t) bool: what each place sees
    """

    encoder: Bools
    decoder: tuple[Bools, ...]


def draw_masks(layout: Layout, known: Bools, rngs: Sequence[np.random.Generator]) -> Masks:
    """Random masks, of each text by its own generator, so that they do not depend on its neighbours.

    known  (T,): tokens that may be hidden, all but the special ones
    """
    lengths = np.diff(layout.offsets).tolist()
    hidden = [rng.random(t) < MASKED for rng, t in zip(rngs, lengths, strict=True)]
    seen = [_visible(t, rng) for rng, t in zip(rngs, lengths, strict=True)]
    ends = np.cumsum([run.texts for run in layout.runs]).tolist()
    runs = zip(ends, layout.runs, strict=True)
    return Masks(np.concatenate(hidden) & known, tuple(np.stack(seen[end - run.texts : end]) for end, run in runs))


def _visible(t: int, rng: np.random.Generator) -> Bools:
    """(t, t): every place sees the first, which is the vector, and half of the others, never itself.

    The first place predicts nothing; it sees itself, since a row without anything visible has no softmax.
    """
    seen: Bools = rng.random((t, t)) < SEEN
    seen[np.arange(t), np.arange(t)] = False
    seen[:, 0] = True
    return seen


class Decoder(nn.Module):
    """One layer with its own queries: the vector of the text at every position (equations 4 to 7)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.query, self.key_value, self.attended = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.query_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.attended_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.up, self.down = nn.Linear(d, config.ffn), nn.Linear(config.ffn, d)
        self.down_norm = nn.LayerNorm(d, eps=config.norm_eps)

    def forward(
        self, vectors: Tensor, words: Tensor, places: Tensor, layout: Layout, masks: Sequence[Tensor]
    ) -> Tensor:
        """(T, d) states from which every token is predicted.

        vectors  (n, d) state of the first token of each text; words (T, d) embedded tokens, as the network reads them;
        places   (T, d) rows of the position table; masks: of each run (n, t, t), what each place sees
        """
        outputs, text = [], 0
        runs = zip(layout.cut(words), layout.cut(places), masks, strict=True)
        for (run, word), (_, place), mask in runs:
            vector = vectors[text : text + run.texts, None]  # (n, 1, d)
            block = word.view(run.texts, run.length, -1)
            keys = torch.cat([vector, block[:, 1:]], dim=1)  # (n, t, d): the vector stands at the first place
            asked = self.query_norm(vector + place.view(run.texts, run.length, -1))  # (n, t, d)
            outputs.append(self._layer(asked, keys, mask).flatten(0, 1))
            text += run.texts
        return torch.cat(outputs)

    def _layer(self, asked: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        n, t, d = asked.shape
        q = self.query(asked).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(keys).view(n, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        with _kernels(q.device):
            a = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])  # (n, heads, t, d / heads)
        x = self.attended_norm(asked + self.attended(a.transpose(1, 2).reshape(n, t, d)))
        states: Tensor = self.down_norm(x + self.down(gelu(self.up(x))))
        return states


def _kernels(device: torch.device) -> AbstractContextManager[object]:
    """On a Hopper GPU PyTorch takes cuDNN first, which plans for every new (n, t), 30 ms or more each, and here nearly
    every run of every step is new (sdp_utils.cpp, `check_prefer_cudnn_attention`)."""
    if device.type != "cuda":
        return nullcontext()
    usable: AbstractContextManager[object] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return usable


def word_loss(states: Tensor, words: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens `ids` (T,) from states (T, d), with the word table (v, d) as output layer."""
    if not len(ids):
        return states.sum()  # 0, and there is something to differentiate
    parts = [
        checkpoint(_summed, part, words, wanted, use_reentrant=False)
        for part, wanted in zip(torch.split(states, ROWS), torch.split(ids, ROWS), strict=True)
    ]
    return torch.stack(parts).sum() / len(ids)


def _summed(states: Tensor, words: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy((states @ words.T).float(), ids, reduction="sum")


class RetroMAE(Updates):
    """Pre-training of a model on single texts.

    texts      token ids; plan: which of them each step takes
    mask_id    what the encoder reads instead of a hidden token
    """

    settings: TrainSettings

    def __init__(
        self,
        model: Model,
        texts: Tokens,
        plan: Sequence[Ints],
        settings: TrainSettings,
        folder: Path,
        *,
        special: tuple[int, ...],
        mask_id: int,
        world: World | None = None,
    ) -> None:
        check_lengths(model, texts)
        self.model, self.texts, self.mask_id, self._special = model, texts, mask_id, np.array(special)
        self.reader = NetworkReader(model.network, settings.precision, recompute=settings.recompute)
        self.decoder = Decoder(model.config.network)
        initialise(self.decoder, seed=settings.seed)  # here: a GPU takes no random numbers of the CPU
        self.decoder.to(self.reader.device)
        freeze(model, settings)
        model.heads.requires_grad_(False)
        modules = {"model": model, "decoder": self.decoder}
        groups = parameter_groups(model, settings, self.decoder)
        sizes = texts.lengths
        super().__init__(modules, groups, plan, sizes, settings, folder, world or World(), self.reader.dtype)

    def gradients(self, rows: Ints) -> dict[str, float]:
        mine = rows[self.world.rank :: self.world.size]
        mine = mine[np.argsort(self.texts.lengths[mine], kind="stable")]
        packed = Packed.of(texts_of(self.texts, mine))
        known = ~np.isin(packed.ids, self._special)
        rngs = [np.random.default_rng((self.settings.seed, self.step, int(row))) for row in mine]
        masks = draw_masks(packed.layout, known, rngs)
        counts = (int(masks.encoder.sum()), int(known.sum()))
        shares = [self.world.share(count) for count in counts]
        losses = [share * loss for share, loss in zip(shares, self.losses(packed, masks, known), strict=True)]
        torch.autograd.backward(self.scaler.scale(torch.stack(losses).sum()))
        self.world.sum_gradients(self.trained())
        log = self.world.numbers(dict(zip(("encoder", "decoder"), losses, strict=True)))
        return {"total": sum(log.values()), **log}

    def losses(self, packed: Packed, masks: Masks, known: Bools) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the hidden tokens by the encoder, and of all known tokens by the decoder."""
        network, device, layout = self.model.network, self.device, packed.layout
        shown = np.where(masks.encoder, self.mask_id, packed.ids)
        read, whole = (self.reader.batch(ids, layout) for ids in (shown, packed.ids))
        hidden_at = torch.from_numpy(np.flatnonzero(masks.encoder)).to(device)
        known_at = torch.from_numpy(np.flatnonzero(known)).to(device)
        starts = layout.borders(device)[:-1]
        with self.reader.mixed():
            states = self.reader.states(read)  # (T, d)
            words = network.words.weight
            encoder = word_loss(states[hidden_at], words, whole.ids[hidden_at])
            seen = [torch.from_numpy(mask).to(device) for mask in masks.decoder]
            places = network.positions(whole.positions)
            vectors = states[starts].float()
            decoded = self.decoder(vectors, network.embed(whole), places, layout, seen)
            decoder = word_loss(decoded[known_at], words, whole.ids[known_at])
        return encoder.float(), decoder.float()
