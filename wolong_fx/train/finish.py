"""What a finished run leaves behind: the loss plot, a sample of text, a summary."""

from __future__ import annotations

import logging
from pathlib import Path

from wolong_fx import stats
from wolong_fx.report.screen import work_words
from wolong_fx.train.files import write_atomically
from wolong_fx.train.loop import Outcome
from wolong_fx.train.plot import plot_losses
from wolong_fx.train.sample import generate_text

log = logging.getLogger("wolong_fx")


def finish_run(outcome: Outcome, directory: Path) -> None:
    """Write loss.png and sample.txt and tell where everything is; raises CannotWrite."""
    config, trainer = outcome.run.config, outcome.run.config.trainer
    title = f"{config.model.name}, {config.compile['backend']}, {config.optim.name} {config.optim.lr:g}"
    plot_losses(directory / "loss.png", {config.model.name: outcome.records}, title=title)
    text = generate_text(
        outcome.run.model,
        trainer.prompt,
        size=trainer.sample_bytes,
        context=config.data.length,
        temperature=trainer.temperature,
        seed=config.seed,
    )
    write_atomically(directory / "sample.txt", lambda file: file.write(text.encode()))
    log.info("%s", _summary(outcome, directory))
    if config.compile["backend"] == "wolong":
        log.info("%s", work_words(stats(outcome.run.model)))
    log.info("--- sample, temperature %g ---\n%s\n---", trainer.temperature, text)


def _summary(outcome: Outcome, directory: Path) -> str:
    train, held_out = outcome.losses(), outcome.losses("validation")
    parts = [f"{outcome.run.step} steps"]
    if train:
        parts += [f"loss {train[0]:.3f} -> {train[-1]:.3f}", f"{outcome.tokens_per_second:,.0f} tokens/s"]
    if held_out:
        parts.append(f"validation {held_out[-1]:.3f}")
    return ", ".join(parts) + f"; loss.png, metrics.jsonl, sample.txt in {directory}"
