"""`python -m wolong_fx.train`: Hydra in, exit code out.

0 done; 1 the run failed (disk, damaged checkpoint, diverged); 2 the command line is wrong;
130 and 143 stopped by Ctrl-C or SIGTERM after a checkpoint was saved.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from wolong_fx.errors import (
    BadConfig,
    BadOptionValue,
    CheckpointMismatch,
    NoText,
    TextTooShort,
    UnknownOption,
    UnknownPass,
    WolongError,
)
from wolong_fx.train.config import leave_compile_open, read_config

log = logging.getLogger("wolong_fx")

_MISTAKES = (
    HydraException,
    OmegaConfBaseException,
    BadConfig,
    BadOptionValue,
    CheckpointMismatch,
    NoText,
    TextTooShort,
    UnknownOption,
    UnknownPass,
)
_NOISE = re.compile(
    r"Config search path.*|To append to your config.*|(reference|object)_type=\S+|See https\S+ .*", re.S
)


def main() -> int:
    """Train as the command line says and return the exit code; errors are one line on stderr."""
    leave_compile_open()
    with _hydra_raises():
        return _exit_code(_hydra_main)


def one_line(error: BaseException) -> str:
    """An error's text and its cause's in one line, without what Hydra adds for its own developers."""
    causes = [error] + ([error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [])
    text = " ".join(_NOISE.sub("", str(e)) for e in causes)
    return " ".join(text.replace("full_key:", "at").split())


@hydra.main(config_path="pkg://wolong_fx.configs", config_name="train", version_base="1.3")
def _hydra_main(composed: DictConfig) -> None:
    # Hydra would add a line of its own to an error, but lets SystemExit through
    code = _exit_code(lambda: _train(composed))
    if code:
        sys.exit(code)


def _train(composed: DictConfig) -> int:
    config = read_config(composed)
    directory = Path(HydraConfig.get().runtime.output_dir)
    # torch is slow to import: a wrong command line is told before it
    from wolong_fx.train.finish import finish_run
    from wolong_fx.train.loop import train

    outcome = train(config, directory)
    if outcome.signum is None:
        finish_run(outcome, directory)
        return 0
    log.warning("stopped by %s after step %d", signal.Signals(outcome.signum).name, outcome.run.step)
    log.warning("continue with run_dir=%s and the same keys", directory)
    return 128 + outcome.signum


def _exit_code(job: Callable[[], int | None]) -> int:
    try:
        return job() or 0
    except _MISTAKES as error:
        return _fail(2, one_line(error))
    except (WolongError, OSError) as error:
        return _fail(1, one_line(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted; the last checkpoint stands")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints errors and exits 1 by itself, unless this variable of its own asks for the exception."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _fail(code: int, line: str) -> int:
    print(f"wolong_fx.train: {line}", file=sys.stderr)
    return code
