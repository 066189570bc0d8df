"""Which loops become one, which do not, and that every bit of their results stays."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs, compile_partition
from wolong_fx.codegen import join_loops as joining
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.targets import CppTarget
from wolong_fx.errors import WolongError
from wolong_fx.ir.happens_before import check_races
from wolong_fx.ir.index import Index
from wolong_fx.ir.program import Loop
from wolong_fx.ir.text import print_program
from wolong_fx.ir.verify import verify
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import SCAN
from wolong_fx.runtime.machine_costs import usual_costs
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.loops import FAMILIES, LoopCase, random_loops
from wolong_fx.testing.mutations import MUTATIONS, misbehaves
from wolong_fx.testing.tracing import trace_core

GOLDEN = Path(__file__).parent / "golden"
APART = ("join-loops",)


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 2) for d in op.dims)


def program_of(case, disable=(), ledger=None, **choices):
    gm, options = trace_core(case.function, *case.inputs), Options.of(disable=disable)
    return build_programs(gm, options, ledger or Ledger(), small_tiles, **choices).run


def trips(program):
    """The trip counts of the outermost loops, in order."""
    return [item.var.extent for item in program.body if isinstance(item, Loop)]


def assert_joined(case, seed=0):
    """The program with its loops joined gives what it gives with all of them apart, bit by bit."""
    joint, apart = program_of(case), program_of(case, APART)
    results = (run_program(p, list(case.inputs), seed=seed) for p in (joint, apart))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return trips(joint), trips(apart)


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) / 2 for shape in shapes)


def walk(x, u):
    """A plain recurrence: its last state and all its states."""

    def step(h, x, u):
        h = (x + h @ u).tanh()
        return h, h.clone()

    return SCAN(step, (x[0] * 0,), (x,), (u,))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_random_loops_joined_compute_the_same_bits(seed):
    joint, apart = assert_joined(random_loops(random.Random(seed)), seed)
    assert set(joint) == set(apart)


def test_the_random_loops_are_joined_and_some_are_not():
    """Without this the property above could hold because nothing happens."""
    ledgers = [Ledger() for _ in range(6)]
    counts = [
        trips(program_of(random_loops(random.Random(seed)), ledger=ledger))
        for seed, ledger in enumerate(ledgers)
    ]
    assert any(d.step == "join-loops" for ledger in ledgers for d in ledger.decisions)
    assert any(len(joint) > len(set(joint)) for joint in counts)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_two_directions_are_one_loop_of_one_stage(steps):
    case = FAMILIES["two_walks"](steps, torch.float32)
    assert assert_joined(case) == ([steps], [steps, steps])
    (loop,) = [item for item in program_of(case).body if isinstance(item, Loop)]
    (stage,) = loop.body
    assert len(stage.ops) == 2


def test_loops_of_different_trip_counts_stay_apart():
    case = LoopCase(lambda x, u: (*walk(x, u), *walk(x[1:], u)), tensors((5, 2, 6), (6, 6)))
    assert assert_joined(case) == ([5, 4], [5, 4])


def test_a_loop_that_needs_what_another_one_leaves_follows_it():
    case = FAMILIES["encoder_decoder"](4, torch.float32)
    assert assert_joined(case) == ([4, 4], [4, 4])

    def by_way_of_a_third(x, u):
        _, first = walk(x, u)
        _, second = walk(first[:2], u)
        return walk(x + second.sum(), u)

    case = LoopCase(by_way_of_a_third, tensors((4, 2, 6), (6, 6)))
    assert assert_joined(case) == ([4, 2, 4], [4, 2, 4])


def test_joining_two_pairs_does_not_make_each_wait_for_the_other():
    """Apart, the second loop of each pair may follow the first of the other; joined, only one pair may be."""

    def crossed(x, y, u):
        _, a = walk(x, u)
        _, b = walk(y, u)
        d, _ = walk(a[:3] * 2, u)
        c, _ = walk(x * d.sum(), u)
        return b[0], c, d

    joint, _ = assert_joined(LoopCase(crossed, tensors((4, 2, 6), (4, 2, 6), (6, 6))))
    assert joint == [4, 3, 4]


def test_what_stands_between_two_loops_is_computed_before_or_after_both():
    def between(x, u, v):
        _, there = walk(x, u)
        after = there.exp().sum(0)
        _, back = walk((x.flip(0) * 2).sigmoid(), v)
        return after + back.sum(0)

    case = LoopCase(lambda *inputs: (between(*inputs),), tensors((4, 2, 6), (6, 6), (6, 6)))
    assert assert_joined(case)[0] == [4]


def test_layers_of_directions_are_one_loop_a_layer():
    def layers(x, u, v):
        for _ in range(2):
            _, there = walk(x, u)
            _, back = walk(x.flip(0), v)
            x = there + back.flip(0)
        return (x,)

    assert assert_joined(LoopCase(layers, tensors((4, 2, 6), (6, 6), (6, 6))))[0] == [4, 4]


def test_loops_inside_of_joined_loops_are_joined():
    both = FAMILIES["nested"](3, torch.float32)

    def twice(x, u):
        return (*both.function(x, u), *both.function(x.flip(0), u))

    program = program_of(LoopCase(twice, both.inputs))
    (loop,) = [item for item in program.body if isinstance(item, Loop)]
    assert len([item for item in loop.body if isinstance(item, Loop)]) == 1
    assert_joined(LoopCase(twice, both.inputs))


def test_loops_that_share_a_matrix_operand_read_it_once():
    """Two heads that look at one memory: their products of it are one operator's, as in one loop."""

    def heads(x, memory, u, v):
        def attend(h, x, memory, u):
            scores = memory @ h.reshape(6, 1)
            h = (x + (scores * memory).sum(0) @ u).tanh()
            return h, h.clone()

        ends = [SCAN(attend, (x[0] * 0,), (x,), (memory, w)) for w in (u, v)]
        return tuple(result for end in ends for result in end)

    assert assert_joined(LoopCase(heads, tensors((4, 1, 6), (5, 6), (6, 6), (6, 6))))[0] == [4]


def test_products_of_two_states_and_the_same_weights_are_gathered_inside_a_trip():
    """Carried states stay where the loop expects them: rows of the gathered operand are copies."""

    def twins(x, y, u, v):
        def step(h, x, u, v):
            gate = (h @ u).sigmoid().flip(1)
            return ((gate * h + x) @ v).tanh(), h.clone()

        return tuple(SCAN(step, (s[0] * 1,), (s,), (u, v))[0] for s in (x, y))

    case, ledger = LoopCase(twins, tensors((3, 1, 256), (3, 1, 256), (256, 256), (256, 256))), Ledger()
    assert assert_joined(case)[0] == [3]
    program_of(case, ledger=ledger)
    assert any("are gathered with" in decision.because for decision in ledger.decisions)


def test_a_target_that_expects_a_loss_keeps_its_loops_apart():
    case, ledger = FAMILIES["two_walks"](5, torch.float32), Ledger()
    program = program_of(case, ledger=ledger, estimate=lambda elements: 2e-6 / len(elements))
    assert trips(program) == [5, 5]
    (decision,) = [d for d in ledger.decisions if d.step == "join-loops"]
    assert (decision.action, decision.because) == ("kept", "2 us in the trips of scan, 1 us apart")


@pytest.mark.parametrize(("width", "loops"), [(64, 1), (512, 2)])
def test_directions_are_joined_while_their_weights_fit_the_cache_together(width, loops):
    """Of 64 columns a barrier a trip is worth more; 512 fill the second-level cache twice over."""

    def directions(x, u, v):
        return (*lstm(x, u), *lstm(x.flip(0), v))

    def lstm(z, u):
        def step(h, c, z, u):
            i, f, g, o = (z + h @ u).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return h, c, h.clone()

        start = z[0, :, :width]
        return SCAN(step, (start * 0, start * 1), (z,), (u,))

    caches = {"l1_bytes": 48 << 10, "l2_bytes": 1 << 20, "l3_bytes": 32 << 20}
    target = CppTarget(Options(), "avx512", 2, usual_costs("avx512", 2, caches))
    case = LoopCase(directions, tensors((40, 1, 4 * width), (width, 4 * width), (width, 4 * width)))
    assert len(trips(program_of(case, estimate=target.estimate))) == loops


@pytest.mark.cpu
def test_joined_kernels_compute_the_same_bits():
    case = FAMILIES["two_walks"](7, torch.float32)
    gm = trace_core(case.function, *case.inputs)
    kernels = [compile_partition(gm, Options.of(disable=disable), Ledger()) for disable in ((), APART)]
    joint, apart = (kernel.launch(list(case.inputs)) for kernel in kernels)
    assert all(torch.equal(a, b) for a, b in zip(joint, apart, strict=True))


def test_a_joint_loop_is_what_its_golden_file_shows(request):
    case, ledger = FAMILIES["two_walks"](5, torch.float32), Ledger()
    before, after = print_program(program_of(case, APART)), print_program(program_of(case, ledger=ledger))
    decisions = "\n".join(str(d) for d in ledger.decisions if d.step == "join-loops")
    text = f"before:\n{before}\nafter:\n{after}\nledger:\n{decisions}\n"
    assert_golden(text, GOLDEN / "join_loops.txt", request.config.getoption("--accept"))


# ---- faults


def is_caught(case, expected):
    """Whether a wrongly made program is refused, faults, or gives other results."""
    try:
        program = program_of(case)
        results = run_program(program, list(case.inputs), seed=0)
    except WolongError:
        return True
    return not all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_joining_a_loop_with_one_that_it_needs_is_caught(monkeypatch):
    cases = [FAMILIES["encoder_decoder"](4, torch.float32)]
    cases.append(LoopCase(lambda x, u: walk(walk(x, u)[1], u), tensors((4, 2, 6), (6, 6))))
    expected = [run_program(program_of(case), list(case.inputs)) for case in cases]
    monkeypatch.setattr(joining, "_followers", lambda before, start: set())
    assert all(is_caught(*pair) for pair in zip(cases, expected, strict=True))


def test_a_second_loop_that_is_a_trip_late_is_caught(monkeypatch):
    case = FAMILIES["two_walks"](5, torch.float32)
    expected = run_program(program_of(case), list(case.inputs))
    real = joining._with_variable

    def late(element, old, new):
        shifted = joining.rewrite_op(element, index=lambda i: i.substitute({new: (Index.of(new) + 1) % 5}))
        return real(shifted, old, new)

    monkeypatch.setattr(joining, "_with_variable", late)
    assert is_caught(case, expected)


def test_a_joint_loop_without_one_of_its_barriers_is_refused():
    case, rng, faults = FAMILIES["two_walks"](5, torch.float32), random.Random(7), 0
    program = program_of(case)
    for name in ("drop_barrier", "overlap_buffers", "reverse_loads"):
        for _ in range(4):
            mutant = MUTATIONS[name](program, rng)
            if mutant is not None and misbehaves(mutant, list(case.inputs)):
                faults += 1
                with pytest.raises(WolongError):
                    verify(mutant, after=name)
                    check_races(mutant)
    assert faults >= 3
