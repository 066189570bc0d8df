"""Layers that torch runs as one operator in evaluation compute the same as their parts, in one kernel."""

import pytest
import torch
from torch import nn

import wolong_fx

B, T, D = 2, 5, 16


def assert_same(model, *inputs, **options):
    """Equal to eager, without an operator left to torch."""
    model.eval()
    with torch.no_grad():
        expected = model(*inputs, **options)
        compiled = wolong_fx.optimize(model)
        got = compiled(*inputs, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    stats = wolong_fx.stats(compiled)
    assert "fell back" not in str(stats)
    assert "1 kernel launches" in str(stats)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_is_one_kernel(norm_first):
    layer = nn.TransformerEncoderLayer(
        D, 4, 24, 0.0, norm_first=norm_first, batch_first=True, activation="gelu"
    )
    assert_same(layer, torch.randn(B, T, D))


def test_an_encoder_layer_looks_past_padding_and_nothing_of_padding_alone():
    layer = nn.TransformerEncoderLayer(D, 4, 24, 0.0, batch_first=True)
    padding = torch.tensor([[False, False, True, True, True], [False] * 5])
    assert_same(layer, torch.randn(B, T, D), src_key_padding_mask=padding)


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=str)
def test_attention_gives_its_weights_if_wanted(options):
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(D, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, **options)

    assert_same(SelfAttention(), torch.randn(B, T, D))
