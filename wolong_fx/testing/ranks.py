"""Ranks that live as long as their user wants, so that torch is imported once a rank."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)


class Ranks:
    """Processes that run functions side by side, each in a group `wolong` and one of gloo beside it.

    `run(function, *arguments)` calls `function(peers, *arguments)` in all, and returns the results by rank.
    """

    def __init__(self, size: int, timeout: timedelta = TIMEOUT) -> None:
        self.size = size
        # Forked from a process that only imports torch: half a second a rank, not five.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["wolong_fx.comm", "torch.nn.parallel", "torch.distributed.fsdp"])
        store = _store(0, is_server=True)
        self._store = store
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [mine for mine, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, store.port, timeout, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        self.start(function, *arguments)
        return [self.result(rank) for rank in range(self.size)]

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        for pipe in self.pipes:
            pipe.send((inspect.getfile(function), function.__name__, arguments))

    def result(self, rank: int, patience: float = 90) -> Any:
        assert self.pipes[rank].poll(patience), f"rank {rank} does not answer"
        is_good, value = self.pipes[rank].recv()
        assert is_good, f"rank {rank}: {value}"
        return value

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


class Peers:
    """What a function in a rank is given: its rank, how many there are, a group of gloo to compare with."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.gloo = dist.new_group(backend="gloo")


@cache
def _module(file: str) -> ModuleType:
    """A file as a module: what pytest imports has no name by which a process could import it, too."""
    spec = spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _store(port: int, *, is_server: bool) -> Any:
    kind = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    return kind("127.0.0.1", port, None, is_server, wait_for_workers=False)


def _serve(rank: int, size: int, port: int, timeout: timedelta, pipe: Connection) -> None:
    import wolong_fx.comm  # noqa: F401

    torch.set_num_threads(1)
    store = _store(port, is_server=False)
    dist.init_process_group("wolong", store=store, rank=rank, world_size=size, timeout=timeout)
    peers = Peers(rank, size)
    while True:
        file, name, arguments = pipe.recv()
        try:
            pipe.send((True, getattr(_module(file), name)(peers, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


@contextmanager
def ranks_of(size: int, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """So many ranks, killed at the end whatever they do."""
    ranks = Ranks(size, timeout)
    try:
        yield ranks
    finally:
        ranks.close()
