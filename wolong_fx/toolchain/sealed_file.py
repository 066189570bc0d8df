"""A shared object with a checksum behind its last byte, where the loader does not look."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

MAGIC = b"WOLONGSO"
_DIGEST_BYTES = sha256().digest_size


def seal(path: Path) -> None:
    """Append the checksum and wait until all of it is on the disk: a rename must not outlive its data."""
    with open(path, "r+b") as file:
        digest = sha256(file.read()).digest()
        file.write(MAGIC + digest)
        file.flush()
        os.fsync(file.fileno())


def is_sealed(path: Path) -> bool:
    """Whether every byte is there and unchanged; False for a missing or unreadable file.

    Reads the whole file: a kernel is some 50 KB, and 0.1 ms is little beside what loading it costs.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return False
    body, seal_found = content[: -len(MAGIC) - _DIGEST_BYTES], content[-len(MAGIC) - _DIGEST_BYTES :]
    return seal_found == MAGIC + sha256(body).digest()
