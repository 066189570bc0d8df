"""Every collective of the backend against gloo and against what its ranks were given."""

from __future__ import annotations

import random

import pytest
import torch
import torch.distributed as dist

from wolong_fx.comm import is_in_arena

pytestmark = pytest.mark.cpu

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
OPS = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.AVG,
    "product": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}
SIZES = (0, 1, 3, 63, 65, 1000, 8191, 16385, 70_001, 300_007)
"""Elements: tails of every kind, in slots, in one stage and in several."""


def numbers(seed, rank, size, dtype):
    """A rank's numbers, which every rank can draw."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    if dtype == torch.bool:
        return torch.rand(size, generator=generator) < 0.5
    if dtype.is_floating_point:
        return torch.randn(size, generator=generator).to(dtype)
    return torch.randint(-100, 100, (size,), generator=generator).to(dtype)


def placed(tensor, where):
    """The same numbers in the arena, in memory of its own, or strided."""
    if where == "arena":
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        copy = backend.allocate_tensor(tensor.numel(), dtype=tensor.dtype, device=torch.device("cpu"))
        assert is_in_arena(copy) or not len(tensor)
        return copy.copy_(tensor)
    if where == "strided":
        return torch.stack([tensor, tensor], 1)[:, 0]
    return tensor.clone()


def reduced(parts, op):
    """By rank, one after another, 16-bit floats in float32: what the core promises to the bit."""
    dtype = parts[0].dtype
    wide = [p.float() if dtype in (torch.float16, torch.bfloat16) else p for p in parts]
    total = wide[0]
    for part in wide[1:]:
        if dtype == torch.bool:
            total = total | part if op in ("sum", "max") else total & part
        else:
            total = {
                "sum": torch.add,
                "avg": torch.add,
                "product": torch.mul,
                "min": torch.minimum,
                "max": torch.maximum,
            }[op](total, part)
    return (total / len(parts) if op == "avg" else total).to(dtype)


def draws(seed, count):
    """Cases that all ranks draw alike; where a tensor lies differs from rank to rank in some."""
    rng = random.Random(seed)
    for case in range(count):
        dtype = rng.choice(DTYPES)
        ops = list(OPS) if dtype.is_floating_point else [op for op in OPS if op != "avg"]
        places = rng.choice([("arena",), ("own",), ("arena", "own"), ("strided", "arena")])
        yield case, rng.choice(SIZES), dtype, rng.choice(ops), places


def all_reduce_cases(peers, seed, count):
    for case, size, dtype, op, places in draws(seed, count):
        parts = [numbers(case, q, size, dtype) for q in range(peers.size)]
        mine = placed(parts[peers.rank], places[peers.rank % len(places)])
        dist.all_reduce(mine, OPS[op])
        expected = reduced(parts, op)
        assert torch.equal(mine, expected), (case, size, dtype, op, places)


def test_all_reduce_adds_in_the_order_of_the_ranks_to_the_bit(ranks):
    ranks.run(all_reduce_cases, 1, 60)


def reduce_cases(peers, seed, count):
    for case, size, dtype, op, places in draws(seed, count):
        parts = [numbers(case, q, size, dtype) for q in range(peers.size)]
        mine, root = placed(parts[peers.rank], places[peers.rank % len(places)]), case % peers.size
        dist.reduce(mine, root, OPS[op])
        expected = reduced(parts, op) if peers.rank == root else parts[peers.rank]
        assert torch.equal(mine, expected), (case, size, dtype, op, places)


def test_reduce_leaves_what_is_not_the_roots_as_it_was(ranks):
    ranks.run(reduce_cases, 2, 40)


def reduce_scatter_cases(peers, seed, count):
    for case, size, dtype, op, places in draws(seed, count):
        parts = [numbers(case, q, size * peers.size, dtype) for q in range(peers.size)]
        mine = placed(parts[peers.rank], places[peers.rank % len(places)]).contiguous()
        expected = reduced(parts, op).view(peers.size, -1)[peers.rank] if size else parts[0]
        by_tensor, by_list = torch.empty(size, dtype=dtype), torch.empty(size, dtype=dtype)
        dist.reduce_scatter_tensor(by_tensor, mine, OPS[op])
        dist.reduce_scatter(by_list, list(mine.chunk(peers.size)) if size else [mine] * peers.size, OPS[op])
        assert torch.equal(by_tensor, expected) and torch.equal(by_list, expected), (case, size, dtype, op)


def test_reduce_scatter_gives_each_rank_its_part(ranks):
    ranks.run(reduce_scatter_cases, 3, 30)


def exchange_cases(peers, seed, count):
    for case, size, dtype, _, places in draws(seed, count):
        parts = [numbers(case, q, size, dtype) for q in range(peers.size)]
        mine, root = placed(parts[peers.rank], places[peers.rank % len(places)]), case % peers.size
        is_root = peers.rank == root
        gathered = [torch.empty_like(p) for p in parts]
        dist.all_gather(gathered, mine)
        assert all(map(torch.equal, gathered, parts)), (case, size, dtype, places)
        stacked = torch.empty(peers.size * size, dtype=dtype)
        dist.all_gather_into_tensor(stacked, mine.contiguous())
        assert torch.equal(stacked, torch.cat(parts))
        at_root = [torch.empty_like(p) for p in parts] if is_root else None
        dist.gather(mine, at_root, root)
        assert at_root is None or all(map(torch.equal, at_root, parts))
        received = torch.empty_like(parts[0])
        dist.scatter(received, list(parts) if is_root else None, root)
        assert torch.equal(received, parts[peers.rank])
        dist.broadcast(mine, root)
        assert torch.equal(mine, parts[root])


def test_what_ranks_exchange_arrives(ranks):
    ranks.run(exchange_cases, 4, 25)


def ragged_all_to_all(peers, size):
    def sent(source, target):
        return torch.full((size * (source + 1) // (target + 1),), 10.0 * source + target)

    outputs = [torch.empty_like(sent(q, peers.rank)) for q in range(peers.size)]
    dist.all_to_all(outputs, [sent(peers.rank, q) for q in range(peers.size)])
    assert all(torch.equal(output, sent(q, peers.rank)) for q, output in enumerate(outputs))
    whole = torch.cat([sent(peers.rank, q) for q in range(peers.size)])
    result = torch.empty(sum(map(len, outputs)))
    lengths = [len(sent(peers.rank, q)) for q in range(peers.size)]
    dist.all_to_all_single(result, whole, list(map(len, outputs)), lengths)
    assert torch.equal(result, torch.cat(outputs))


@pytest.mark.parametrize("size", [0, 1, 1000, 200_000])
def test_all_to_all_takes_pieces_of_any_size(ranks, size):
    ranks.run(ragged_all_to_all, size)


def messages_around(peers, size):
    after, before = (peers.rank + 1) % peers.size, (peers.rank - 1) % peers.size
    mine, first, second = torch.full((size,), float(peers.rank)), torch.empty(size), torch.empty(size)
    handles = [dist.isend(mine, after, tag=1), dist.isend(mine + 100, after, tag=2)]
    handles += [dist.irecv(second, before, tag=2), dist.irecv(first, before, tag=1)]
    for handle in handles:
        handle.wait()
    assert (first == before).all() and (second == before + 100).all()


@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_messages_are_told_by_their_tags_and_both_may_send_first(ranks, size):
    ranks.run(messages_around, size)


def from_anybody(peers):
    if peers.rank:
        dist.send(torch.tensor([peers.rank]), 0)
        return None
    received = torch.empty(1, dtype=torch.int64)
    sources = [dist.recv(received) for _ in range(peers.size - 1)]
    return sorted(sources)


def test_a_message_from_anybody_says_from_whom(ranks):
    assert ranks.run(from_anybody)[0] == list(range(1, ranks.size))


def crossed(peers):
    """The collective is begun before the message on one side, after it on the other."""
    total, note = torch.ones(50_000), torch.zeros(3)
    if peers.rank == 0:
        handle = dist.all_reduce(total, async_op=True)
        dist.send(note + 7, 1)
    elif peers.rank == 1:
        dist.recv(note, 0)
        handle = dist.all_reduce(total, async_op=True)
        assert (note == 7).all()
    else:
        handle = dist.all_reduce(total, async_op=True)
    handle.wait()
    return total[0].item()


def test_a_handle_waits_for_nobody_until_it_is_waited_for(ranks):
    assert ranks.run(crossed) == [ranks.size] * ranks.size


def in_subgroups(peers):
    pairs = [dist.new_group([a, b]) for a in range(peers.size) for b in range(a + 1, peers.size)]
    found = []
    for group in pairs:
        value = torch.tensor([2.0**peers.rank])
        if peers.rank in dist.get_process_group_ranks(group):
            dist.all_reduce(value, group=group)
            dist.destroy_process_group(group)
        found.append(value.item())
    return found


def test_subgroups_leave_others_alone(ranks):
    pairs = [(a, b) for a in range(ranks.size) for b in range(a + 1, ranks.size)]
    for rank, found in enumerate(ranks.run(in_subgroups)):
        assert found == [2.0**a + 2.0**b if rank in (a, b) else 2.0**rank for a, b in pairs]


def extremes_with_nan(peers):
    values = torch.tensor([1.0, float("nan"), -float("inf"), 5.0]) + peers.rank
    lowest, highest = values.clone(), values.clone()
    lowest[peers.rank] = float("nan")
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return lowest.tolist(), highest.tolist()


def test_a_nan_of_one_rank_is_everybodys(pair):
    for lowest, highest in pair.run(extremes_with_nan):
        assert torch.tensor(lowest).isnan().tolist() == [True, True, False, False]
        assert torch.tensor(highest).isnan().tolist() == [False, True, False, False]
