"""Text from a trained model."""

from __future__ import annotations

import torch
from torch import Tensor

from wolong_fx.train.models import LanguageModel


def generate_text(
    model: LanguageModel, prompt: str, *, size: int, context: int, temperature: float, seed: int
) -> str:
    """The prompt and `size` more bytes, each drawn from the model's view of the last `context` bytes.

    temperature: 0 takes the likeliest byte, 1 samples from the model's own distribution
    Leaves the global generator and the model's mode as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    text = list(prompt.encode())
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for _ in range(size):
            tokens_TB = torch.tensor(text[-context:])[:, None]
            text.append(_draw(model.logits(tokens_TB)[-1, 0], temperature, generator))
    model.train(was_training)
    return bytes(text).decode(errors="replace")


def _draw(scores_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(scores_V.argmax())
    return int(torch.multinomial((scores_V / temperature).softmax(0), 1, generator=generator))
