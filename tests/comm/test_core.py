"""The core without torch: ranks as threads under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wolong_fx.comm.build import CORE

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_ranks_share_memory_without_races(sanitizer, tmp_path):
    program = tmp_path / "threads"
    sources = [str(Path(__file__).with_name("threads.cpp")), str(CORE / "core.cpp")]
    flags = ["-std=c++17", "-O1", "-g", f"-fsanitize={sanitizer}", "-fwrapv", f"-I{CORE}"]
    subprocess.run(["g++", *flags, *sources, "-o", str(program), "-lpthread"], check=True)
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and ran.stdout == "done\n", ran.stdout + ran.stderr
