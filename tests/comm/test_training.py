"""Training through the backend comes out as through gloo, from gradients that are never copied."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wolong_fx.comm import is_in_arena, usage

pytestmark = pytest.mark.cpu


def trained(group, rank, wrap, steps=5):
    """The model, its losses, and bytes copied for collectives once DDP has settled its buckets."""
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 7)), group)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses, copied = [], 0
    for step in range(steps):
        if step == 2:
            copied = usage().copied
        torch.manual_seed(1000 * step + rank)
        loss = model(torch.randn(16, 40)).square().mean()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses, usage().copied - copied


def with_ddp(model, group):
    return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)


def ddp_cases(peers):
    model, ours, copied = trained(dist.group.WORLD, peers.rank, with_ddp)
    in_arena = [is_in_arena(p.grad) for p in model.parameters()]
    return ours, trained(peers.gloo, peers.rank, with_ddp)[1], in_arena, copied


def test_ddp_trains_as_with_gloo_and_copies_no_gradient(ranks):
    for ours, theirs, in_arena, copied in ranks.run(ddp_cases):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert all(in_arena)
        assert copied == 0


def with_fsdp(model, group):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, "cpu")
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp_cases(peers):
    return trained(dist.group.WORLD, peers.rank, with_fsdp)[1], trained(peers.gloo, peers.rank, with_ddp)[1]


def test_fsdp_trains_as_ddp_with_gloo(pair):
    for ours, theirs in pair.run(fsdp_cases):
        assert ours == pytest.approx(theirs, rel=1e-5)


def functional(peers):
    import torch.distributed._functional_collectives as collectives

    def program(x):
        total = collectives.all_reduce(x * 2, "sum", dist.group.WORLD)
        return collectives.all_gather_tensor(total + 1, 0, dist.group.WORLD)

    x = torch.arange(6.0) + peers.rank
    return program(x).tolist(), torch.compile(program, backend="aot_eager")(x).tolist()


def test_functional_collectives_are_compiled(pair):
    eager, compiled = pair.run(functional)[0]
    assert eager == compiled == [2 * (2 * i + 1) + 1.0 for i in range(6)] * 2
