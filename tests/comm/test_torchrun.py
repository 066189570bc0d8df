"""Under torchrun: a rank that is killed ends the group, and the ranks started again meet each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

PROGRAM = """\
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import wolong_fx.comm

dist.init_process_group("wolong")
rank, has_died = dist.get_rank(), sys.argv[1]
total = torch.ones(100_000) * rank
dist.all_reduce(total)
if rank == 1 and not os.path.exists(has_died):
    open(has_died, "w").close()
    os.kill(os.getpid(), 9)
dist.all_reduce(total)
mesh = init_device_mesh("cpu", (2,))
a, b = torch.arange(48.0).view(8, 6), torch.arange(24.0).view(6, 4)
product = distribute_tensor(a, mesh, [Shard(1)]) @ distribute_tensor(b, mesh, [Shard(0)])
assert torch.equal(product.full_tensor(), a @ b)
with open(f"{has_died}.{rank}", "w") as file:
    file.write(f"{total[0].item()} after {os.environ['TORCHELASTIC_RESTART_COUNT']}")
dist.destroy_process_group()
"""


def test_a_run_is_started_again_after_a_rank_was_killed(tmp_path):
    program, has_died = tmp_path / "program.py", tmp_path / "died"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(program), str(has_died)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "the process of rank 1 ended" in ran.stderr
    assert [(tmp_path / f"died.{rank}").read_text() for rank in (0, 1)] == ["2.0 after 1"] * 2
