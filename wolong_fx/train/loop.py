"""The training loop: step, log, validate, save, and go on exactly where a run stopped."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from wolong_fx.errors import BadConfig, LossNotFinite
from wolong_fx.train import checkpoint as checkpoints
from wolong_fx.train.checkpoint import Checkpoint
from wolong_fx.train.config import TrainConfig
from wolong_fx.train.data import Corpus, Windows, load_corpus
from wolong_fx.train.doors import check_compile_config, open_door
from wolong_fx.train.files import own_directory
from wolong_fx.train.metrics import MetricsLog, Record, read_metrics
from wolong_fx.train.models import LanguageModel, build_model
from wolong_fx.train.optim import build_optimizer
from wolong_fx.train.signals import StopRequest

log = logging.getLogger("wolong_fx")


class Run:
    """A model in training: what moves as steps are made. `step` steps are done, `position` windows seen."""

    def __init__(self, config: TrainConfig, corpus: Corpus) -> None:
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        self.config, self.corpus = config, corpus
        self.model: LanguageModel = build_model(config.model, length=config.data.length)
        self.optimizer = build_optimizer(self.model.parameters(), config.optim)
        self.compiled: nn.Module = open_door(self.model, config.compile)
        self.windows = Windows(corpus.train, config.data.length, seed=config.seed)
        self.held_out = Windows(corpus.validation, config.data.length, seed=0)
        self.step = self.position = 0

    def advance(self) -> float:
        """Make one step and return the loss before it, in nats a byte."""
        batch = self.windows.batch(self.position, self.config.data.batch)
        self.optimizer.zero_grad()
        loss: Tensor = self.compiled(*batch)
        loss.backward()
        if self.config.trainer.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.trainer.clip)
        self.optimizer.step()
        self.step += 1
        self.position += self.config.data.batch
        return loss.item()

    def validate(self) -> float:
        """Mean loss over the same windows of held-out text each time."""
        size = self.config.data.batch
        self.compiled.eval()
        with torch.no_grad():
            batches = (
                self.held_out.batch(i * size, size) for i in range(self.config.trainer.validate_batches)
            )
            losses = [self.compiled(*batch).item() for batch in batches]
        self.compiled.train()
        return fmean(losses)

    def identity(self) -> dict[str, object]:
        """What a checkpoint must share with a run that continues it: model, text, seed."""
        groups = checkpoints.flat(model=self.config.model)
        own = {"seed": self.config.seed, "optim.name": self.config.optim.name}
        return groups | own | {"data.length": self.config.data.length, "text digest": self.corpus.digest}

    def checkpoint(self) -> Checkpoint:
        """The state now."""
        return Checkpoint(
            step=self.step,
            position=self.position,
            identity=self.identity(),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=checkpoints.rng_state(),
        )

    def restore(self, saved: Checkpoint, path: str) -> None:
        """Go on from a checkpoint; raises CheckpointMismatch."""
        checkpoints.check_identity(path, saved.identity, self.identity())
        self.model.load_state_dict(saved.model)
        self.optimizer.load_state_dict(saved.optimizer)
        checkpoints.restore_rng_state(saved.rng)
        self.step, self.position = saved.step, saved.position


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after `step` steps, by signal `signum` or by itself (None)."""

    run: Run
    records: list[Record]
    signum: int | None

    @property
    def tokens_per_second(self) -> float:
        """Median over the records; the first steps, which compile, hardly count."""
        return median(r["tokens_per_second"] for r in self.records if r["split"] == "train")

    def losses(self, split: str = "train") -> list[float]:
        """The losses of one split in the order of steps."""
        return [r["loss"] for r in self.records if r["split"] == split]


def train(config: TrainConfig, directory: Path) -> Outcome:
    """Run or continue the training that `config` describes, its files in `directory`.

    Raises subclasses of WolongError: UnknownOption and BadConfig for the compile group, NoText, TextTooShort,
    TornCheckpoint, CheckpointMismatch, CannotWrite, RunDirectoryBusy, LossNotFinite.
    """
    check_compile_config(config.compile)
    corpus = load_corpus(config.data)
    with own_directory(directory), StopRequest() as stop:
        run = Run(config, corpus)
        resume(run, directory)
        if config.compile["backend"] != "eager":
            log.info("the first step compiles the model: seconds to minutes")
        metrics = MetricsLog(directory, step=run.step, tensorboard=config.trainer.tensorboard)
        try:
            _make_steps(run, metrics, directory, stop)
        finally:
            metrics.close()
        return Outcome(run, read_metrics(metrics.path), stop.signum)


def resume(run: Run, directory: Path) -> None:
    """Restore what `resume` in the config says, and drop checkpoints of a future that is now made again."""
    choice = run.config.resume
    saved = _find_saved(choice, directory)
    if saved is not None:
        run.restore(saved, str(directory) if choice == "auto" else choice)
        log.info("resumed after step %d", run.step)
    checkpoints.drop_newer_checkpoints(directory, run.step)


def _find_saved(choice: str, directory: Path) -> Checkpoint | None:
    if choice == "auto":
        return checkpoints.find_newest_checkpoint(directory)
    if choice == "never":
        return None
    if not Path(choice).is_file():
        raise BadConfig(key="resume", value=choice, expected="'auto', 'never' or a checkpoint file")
    return checkpoints.load_checkpoint(Path(choice))


def _make_steps(run: Run, metrics: MetricsLog, directory: Path, stop: StopRequest) -> None:
    trainer = run.config.trainer
    hidden = None if trainer.progress else True  # None: shown on a terminal, not in a file
    bar = tqdm(total=trainer.steps, initial=run.step, unit="step", disable=hidden, dynamic_ncols=True)
    pace = _Pace(run)
    with bar, logging_redirect_tqdm():
        while run.step < trainer.steps and stop.signum is None:
            loss = run.advance()
            _check_finite(loss, run, directory)
            bar.update()
            if _is_due(run, trainer.log_every):
                speed = pace.tokens_per_second()
                metrics.write(run.step, "train", loss=loss, tokens_per_second=speed)
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if _is_due(run, trainer.validate_every):
                _validate(run, metrics, loss)
                pace.restart()
            if _is_due(run, trainer.checkpoint_every) and run.step < trainer.steps:
                checkpoints.save_checkpoint(directory, run.checkpoint())
                pace.restart()
    checkpoints.save_checkpoint(directory, run.checkpoint())


def _validate(run: Run, metrics: MetricsLog, loss: float) -> None:
    held_out = run.validate()
    metrics.write(run.step, "validation", loss=held_out)
    log.info("step %5d: loss %.4f, validation %.4f", run.step, loss, held_out)


def _is_due(run: Run, every: int) -> bool:
    return every > 0 and run.step % every == 0


def _check_finite(loss: float, run: Run, directory: Path) -> None:
    if not math.isfinite(loss):
        newest = next(iter(checkpoints.checkpoint_files(directory)), None)
        raise LossNotFinite(loss=loss, step=run.step, path=str(newest))


class _Pace:
    """Tokens a second since the last look."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.restart()

    def restart(self) -> None:
        self.since, self.position = perf_counter(), self.run.position

    def tokens_per_second(self) -> float:
        tokens = (self.run.position - self.position) * self.run.config.data.length
        speed = tokens / (perf_counter() - self.since)
        self.restart()
        return speed
