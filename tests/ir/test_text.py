"""Programs survive being printed and parsed; text that is no program is refused with its line."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen.reference import run_program
from wolong_fx.errors import BadProgramText
from wolong_fx.ir.expr import Const
from wolong_fx.ir.index import Index, Quotient, Remainder, Var
from wolong_fx.ir.program import Program, Stage, Store
from wolong_fx.ir.text import parse_program, print_program
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.testing.programs import (
    TYPICAL,
    ProgramBuilder,
    at,
    inputs_of,
    load,
    operator,
    random_program,
)


def round_trip(program):
    text = print_program(program)
    parsed = parse_program(text)
    assert print_program(parsed) == text
    return parsed


def runs_alike(program):
    parsed, inputs = round_trip(program), inputs_of(program)
    for a, b in zip(run_program(program, inputs, seed=1), run_program(parsed, inputs, seed=1), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", TYPICAL)
def test_a_parsed_program_gives_the_same_bits(name):
    runs_alike(TYPICAL[name]())


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_any_program_gives_the_same_bits_after_a_round_trip(seed, stages):
    runs_alike(random_program(seed, stages))


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(NAMES, NAMES, NAMES, st.lists(NAMES, max_size=3))
@settings(deadline=None)
def test_any_name_survives(program, buffer, variable, origin):
    i = Var(variable, 3)
    y = Buffer.contiguous(buffer, DType.F32, (3,), BufferKind.OUTPUT)
    op = operator(buffer, (i,), Store(at(y, i), Const(1.0, DType.F32)))
    op = type(op)(op.name, op.dims, op.stores, (), tuple(origin))
    parsed = round_trip(Program(program, (y,), (Stage((op,)),)))
    assert (parsed.name, parsed.buffers[0].name) == (program, buffer)
    (found,) = parsed.ops()
    assert (found.dims[0].var, found.made_from) == (i, tuple(origin))


@given(st.one_of(st.integers(-(2**63), 2**63 - 1), FLOATS, st.booleans()))
def test_any_constant_survives_with_its_type(value):
    y = Buffer.contiguous("y", DType.F32, (), BufferKind.OUTPUT)
    (op,) = round_trip(
        Program("p", (y,), (Stage((operator("o", (), Store(at(y), Const(value, DType.F64))),)),))
    ).ops()
    found = op.stores[0].value.value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@given(st.binary(max_size=200))
def test_any_constant_bytes_survive(data):
    c = Buffer.contiguous("c", DType.U8, (len(data),), BufferKind.CONSTANT, data)
    assert round_trip(Program("p", (c,), ())).buffers[0].data == data


VARIABLES = [Var("i", 5), Var("j", 7), Var("k", 2)]


def indices(inner):
    def build(kind, of, by, factor, other):
        atom = kind(of, by)
        return Index(0, ((atom, factor),)) + other

    return st.builds(
        build,
        st.sampled_from([Quotient, Remainder]),
        inner,
        st.integers(2, 9),
        st.sampled_from([-3, -1, 1, 2]),
        inner,
    )


INDICES = st.recursive(
    st.builds(
        lambda a, b, c, d: (
            Index.of(VARIABLES[0]) * a + Index.of(VARIABLES[1]) * b + Index.of(VARIABLES[2]) * c + d
        ),
        *[st.integers(-4, 4)] * 4,
    ),
    indices,
    max_leaves=5,
)


@given(INDICES)
def test_any_index_survives_exactly(index):
    p = ProgramBuilder("p")
    x, y = p.input("x", 5), p.output("y", 5, 7, 2)
    i, j, k = VARIABLES
    p.stage(operator("o", (i, j, k), Store(at(y, i, j, k), load(x, index, fill=0.0))))
    (op,) = round_trip(p.build()).ops()
    assert op.loads()[0].access.index == (index,)


def test_layout_is_part_of_the_text():
    buffer = Buffer("x", DType.BF16, (2, 3), BufferKind.INPUT, (1, 2))
    text = print_program(Program("p", (buffer,), ()))
    assert text == "program p\ninput x bf16 [2, 3] strides [1, 2]\n"
    assert parse_program(text).buffers[0].strides == (1, 2)


def test_what_people_add_is_read_over():
    text = print_program(TYPICAL["mlp"]())
    spaced = "# a remark\n" + text.replace("\n", "   # why\n\n").replace(" = ", "=")
    assert print_program(parse_program(spaced.replace("# from hidden   # why", "# from hidden"))) == text


@pytest.mark.parametrize(
    "broken, line, expected",
    [
        ("porgram p", 1, "'program'"),
        ("program p\nstagee {", 2, "a stage or a loop"),
        ("program p\ninput x f33 [1]", 2, "the name of an element type"),
        ("program p\ninput x f32 [1.5]", 2, "a whole number"),
        ("program p\nstage {\nop o (i < 3) {\n%0 = load y[i]\n", 4, "the name of a buffer"),
        ("program p\nstage {\nop o (i < 3) {\n%0 = frobnicate %1\n", 4, "an operation"),
        ("program p\nstage {\nop o (i < 3) {\n%0 = exp %1\n", 4, "a value defined above"),
        ("program p\nstage {\nop o (i < 3) {\n%0 = index j\n", 4, "the name of a variable"),
        (
            "program p\nstage {\nop o () over (k < 3) {\n%0 = index k\n%1 = reduce avg (k) %0",
            5,
            "a reduction",
        ),
        ('program p\nconstant c u8 [1] hex "0g"', 2, "bytes in hexadecimal"),
        ("program p\nstage {\n", 3, "an operator"),
        ('program "\\q"', 1, "text quoted as in JSON"),
    ],
)
def test_text_that_is_no_program_is_refused_with_its_line(broken, line, expected):
    with pytest.raises(BadProgramText) as caught:
        parse_program(broken)
    assert caught.value.facts["line"] == line
    assert caught.value.facts["expected"] == expected
