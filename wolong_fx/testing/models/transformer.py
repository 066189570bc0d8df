"""One step of a decoder that writes a token at a time, keeping keys and values of those before.

B samples, V tokens in the vocabulary, D width, N heads of width E, P positions in the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DecoderLayer(nn.Module):
    """Attention over the cache and a feed-forward part, normalised before (the order of GPT-2)."""

    keys: Tensor
    values: Tensor

    def __init__(self, width: int, heads: int, positions: int, batch: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        shape_BNPE = batch, heads, positions, width // heads
        self.register_buffer("keys", torch.zeros(shape_BNPE))
        self.register_buffer("values", torch.zeros(shape_BNPE))

    def forward(self, x_BD: Tensor, position: Tensor, is_seen_P: Tensor) -> Tensor:
        """(B, D) to (B, D); writes this token's key and value into the cache at `position`, (1,) int64."""
        x_BD = x_BD + self._attend(self.attention_norm(x_BD), position, is_seen_P)
        return x_BD + self.down(F.gelu(self.up(self.feed_norm(x_BD))))

    def _attend(self, x_BD: Tensor, position: Tensor, is_seen_P: Tensor) -> Tensor:
        split = (x_BD.shape[0], self.heads, 1, -1)
        query_BN1E = self.query(x_BD).view(split)
        self.keys[:, :, position] = self.key(x_BD).view(split)
        self.values[:, :, position] = self.value(x_BD).view(split)
        mask_1P = is_seen_P[None]
        mixed_BN1E = F.scaled_dot_product_attention(query_BN1E, self.keys, self.values, attn_mask=mask_1P)
        return self.project(mixed_BN1E.flatten(1))


class DecodeStep(nn.Module):
    """A GPT-2-like decoder (Radford et al. 2019) that takes one token and a static cache, as gpt-fast does.

    The cache is a buffer of each layer, written in place. `example_inputs` places the token at its end.
    """

    all_positions: Tensor

    def __init__(
        self,
        width: int = 256,
        *,
        layers: int = 6,
        heads: int = 8,
        positions: int = 128,
        vocabulary: int = 1000,
        batch: int = 1,
    ) -> None:
        super().__init__()
        self.positions, self.vocabulary = positions, vocabulary
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, positions, batch) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("all_positions", torch.arange(positions))
        self.fill_cache()

    def fill_cache(self, *, seed: int = 0) -> None:
        """As if all positions but the last had been decoded: normal values, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for name, buffer in self.named_buffers():
            if name.endswith((".keys", ".values")):
                buffer.normal_(generator=generator)

    def example_inputs(self, batch: int = 1, *, seed: int = 0) -> tuple[Tensor, ...]:
        """(B,) int64 tokens and the last position, (1,) int64."""
        generator = torch.Generator().manual_seed(seed)
        token_B = torch.randint(self.vocabulary, (batch,), generator=generator)
        return token_B, torch.tensor([self.positions - 1])

    def forward(self, token_B: Tensor, position: Tensor) -> Tensor:
        """(B, V) scores of the next token."""
        x_BD = self.tokens(token_B) + self.places(position)
        is_seen_P = self.all_positions <= position
        for layer in self.layers:
            x_BD = layer(x_BD, position, is_seen_P)
        return self.head(self.norm(x_BD))
