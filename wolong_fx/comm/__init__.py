"""Collectives from the memory that tensors are born in.

Importing this makes the backend known: `torch.distributed.init_process_group("wolong")` then serves
all-reduce and its kin, DDP, FSDP2 and DTensor. On one host it goes through shared memory, else through gloo,
and says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wolong_fx.comm.arena import Usage
from wolong_fx.comm.backend import process_arena, register

if TYPE_CHECKING:
    import torch

__all__ = ["Usage", "is_in_arena", "register", "usage"]

register()


def usage() -> Usage:
    """Bytes of this process's arena, once a group shares memory."""
    return process_arena().usage()


def is_in_arena(tensor: torch.Tensor) -> bool:
    """Whether collectives take a dense tensor from where it is, without a copy, as they do DDP's buckets."""
    return process_arena().has(tensor)
