"""The grid barrier in machine code: whether its instructions stand in the order that its proof needs.

The compilers behind Triton may move instructions. What must remain of every barrier, in the order of the
text: the block meets; writes are pushed out to where other multiprocessors see them; one thread arrives; the
first level of the cache is dropped; the word is polled, and that cache dropped after every poll; the block
meets again. Between the first meeting and the last no other access to global memory may stand.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)

_EVENTS = (
    (r"BAR\.(SYNC|RED|ARV).*", "m"),  # meet
    (r"MEMBAR\.(ALL|SC)\.GPU", "f"),  # fence
    (r"ATOMG\.E\.ADD\.STRONG\.GPU", "a"),  # arrive
    (r"LDG\.E\.STRONG\.GPU", "p"),  # poll
    (r"CCTL\.IVALL", "i"),  # invalidate
    (r"(LDG|STG|LD|ST|LDGSTS|ATOM|ATOMG|RED|REDG|UBLKCP|UTMALDG|UTMASTG|UTMAREDG)\b.*", "x"),
)
"""Instructions of NVIDIA's machines, the first that matches deciding."""

_BARRIER = re.compile("m+fai(m*pi)+m")


def barrier_events(assembly: str) -> str:
    """A letter for every instruction that a barrier consists of or must not contain.

    assembly: what `cuobjdump -sass` prints
    """
    letters = []
    for found in _INSTRUCTION.finditer(assembly):
        letters += [letter for pattern, letter in _EVENTS if re.fullmatch(pattern, found[1])][:1]
    return "".join(letters)


def count_barriers(events: str) -> int:
    """How many barriers there are, all whole.

    Raises AssertionError for one with an instruction missing, in another place, or too many.
    """
    rest, count = _BARRIER.subn(" ", events)
    assert not re.search("[ap]", rest), f"a grid barrier is out of order: {rest!r}, whole ones left out"
    return count


def disassembled(code: bytes) -> str:
    """NVIDIA's machine code as text, by the tool that comes with Triton."""
    from triton import knobs

    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        command = [knobs.nvidia.cuobjdump.path, "-sass", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
