from __future__ import annotations

import ast
import pickle
import string
from pathlib import Path

import pytest

from wolong_fx import errors
from wolong_fx.errors import WolongError

ROOT = Path(__file__).parents[1]
CATALOGUE = {c.__name__: c for c in vars(errors).values() if isinstance(c, type) and c is not WolongError}

# One row an error: the facts it is raised with and the whole message a person reads.
MESSAGES: dict[str, tuple[dict[str, object], str]] = {
    "TransportNotHere": (
        {"transport": "shm", "because": "the ranks are on 2 hosts"},
        "collectives cannot go over comm.transport='shm': the ranks are on 2 hosts; "
        "WOLONG_COMM_TRANSPORT=auto takes what can be, and says what.",
    ),
    "UnknownOption": (
        {"name": "tragte", "where": "options", "nearest": "target"},
        "unknown option 'tragte' in options; did you mean 'target'? `wolong options` lists all.",
    ),
    "BadOptionValue": (
        {
            "name": "threads",
            "value": "two",
            "where": "WOLONG_THREADS",
            "expected": "a number",
        },
        "option 'threads' cannot be 'two' in WOLONG_THREADS: expected a number.",
    ),
    "InvalidProgram": (
        {"step": "lower", "rule": "every-load-is-in-bounds", "culprit": "stage 2"},
        "invalid program after 'lower': rule 'every-load-is-in-bounds' broken by stage 2.",
    ),
    "RaceFound": (
        {"program": "p", "first": "write of cell[0]", "second": "read of cell[1]", "buffer": "h"},
        "race in program 'p': write of cell[0] and read of cell[1] both touch 'h' between barriers.",
    ),
    "ProgramFault": (
        {"program": "p", "fault": "left 3 elements of an output unwritten", "where": "output 'y'"},
        "program 'p' left 3 elements of an output unwritten at output 'y'.",
    ),
    "BadProgramText": (
        {"line": 3, "expected": "a stage or a loop", "found": "stagee {"},
        "line 3: expected a stage or a loop, found 'stagee {'.",
    ),
    "UnsupportedOperator": (
        {"operator": "aten.sort.default", "because": "no lowering"},
        "cannot lower 'aten.sort.default': no lowering.",
    ),
    "CannotOptimize": (
        {"kind": "int", "target": 3},
        "optimize() takes a module, a class of modules or a function, not 'int': 3.",
    ),
    "CannotCapture": (
        {"model": "Net", "because": "it branches on its input"},
        "torch.fx cannot capture 'Net': it branches on its input. optimize() goes through Dynamo and can.",
    ),
    "RunsEagerly": (
        {"name": "model 'Net'", "because": "a reason"},
        "model 'Net' runs eagerly, nothing of it is compiled: a reason. "
        "TORCH_LOGS=graph_breaks shows where torch.compile gave up.",
    ),
    "NoCompiler": (
        {"looked_for": "g++, c++", "path": "/bin"},
        "no C++ compiler: looked for g++, c++ on PATH='/bin'. "
        "Install one (Debian and Ubuntu: `apt install g++`; "
        "Fedora: `dnf install gcc-c++`; conda: `conda install gxx`) or set CXX to one.",
    ),
    "CompilerFailed": (
        {"status": 1, "command": "g++ k.cpp", "said": "k.cpp:1: no", "source": "kept/k.cpp"},
        "the C++ compiler failed with status 1: g++ k.cpp\nk.cpp:1: no\nThe source is in 'kept/k.cpp'.",
    ),
    "CompilerTookTooLong": (
        {"seconds": 120.0, "command": "g++ k.cpp", "source": "kept/k.cpp"},
        "the C++ compiler was stopped after 120 s: g++ k.cpp\nIts source is kept: 'kept/k.cpp'.",
    ),
    "ModelNotFound": (
        {"words": "a:B", "because": "no"},
        "cannot make model 'a:B': no. Write it as package.module:Name, where Name is a module, or a class or "
        "function that makes one without arguments.",
    ),
    "InputsNotTaken": (
        {"inputs": "float32 4x7", "because": "ValueError: no"},
        "the model fails on float32 4x7, eagerly too: ValueError: no. Give --input once for each argument of "
        "the model.",
    ),
    "BadInputText": (
        {"text": "4*4", "example": "4x4"},
        "cannot read input '4*4': write its shape, and its dtype unless float32: 4x4.",
    ),
    "TritonFailed": (
        {"architecture": "sm_90", "because": "no", "source": "kept/k.py"},
        "Triton made no kernel for sm_90: no. 'kept/k.py' says how to see that again, with nothing but "
        "Triton: please report it.",
    ),
    "NoGpuHere": (
        {"because": "torch finds no device"},
        "no GPU to measure on: torch finds no device. On the CPU, to try the benchmark itself: --dry.",
    ),
    "NoTarget": (
        {"target": "cpu", "device": "cuda:0"},
        "target='cpu' has no kernels for cuda:0; what lives there runs eagerly. target='auto' has.",
    ),
    "NoGpu": (
        {"device": "cuda:0", "because": "this torch sees no CUDA device"},
        "no kernel can be launched on 'cuda:0': this torch sees no CUDA device; what lives there runs "
        "eagerly.",
    ),
    "DriverFailed": (
        {"call": "cuLaunchKernelEx", "device": "cuda:0", "status": 716, "because": "misaligned address"},
        "cuLaunchKernelEx failed on 'cuda:0' with 716: misaligned address.",
    ),
    "GridTooLarge": (
        {"kernel": "wolong", "blocks": 132, "device": "H200", "resident": 66, "launches": 240},
        "kernel 'wolong' wants 132 blocks at once and 'H200' has room for 66: it runs as 240 launches "
        "instead of one. Another process, MIG or MPS may have the rest.",
    ),
    "FirstCallInCapture": (
        {"kernel": "wolong"},
        "kernel 'wolong' cannot be made while a CUDA graph is captured; call the model once with these "
        "shapes before the capture.",
    ),
    "IsaNotHere": (
        {"isa": "avx512", "missing": ["avx512f"], "best": "avx2"},
        "this processor has no 'avx512': it lacks ['avx512f']; use isa='avx2' or isa='auto'.",
    ),
    "KernelNotLoadable": (
        {"kernel": "k", "because": "not mapped"},
        "cannot load kernel 'k': not mapped. On a disk mounted noexec: set TMPDIR to another.",
    ),
    "WrongKernelAbi": (
        {"kernel": "k", "found": 1, "expected": 2},
        "kernel 'k' has ABI 1 but this runtime 2: a defect of its emitter.",
    ),
    "StaleKernelInput": (
        {"kernel": "k", "expected": "float32", "which": "input 0", "found": "float64"},
        "kernel 'k' wants float32 as input 0, not float64; compile the model for that.",
    ),
    "KernelCheckFailed": (
        {"message": "index out of range in self", "kernel": "k"},
        "index out of range in self (in kernel 'k')",
    ),
    "BadConfig": (
        {"key": "trainer.steps", "value": 0, "expected": "a whole number, 1 or more"},
        "config key 'trainer.steps' cannot be 0: expected a whole number, 1 or more.",
    ),
    "NoText": (
        {"path": "/nope", "because": "it does not exist"},
        "no text at data.path='/nope': it does not exist; name a file, or a folder that holds text files.",
    ),
    "TextTooShort": (
        {"path": "a.txt", "size": 9, "part": "validation", "length": 64, "needed": 128},
        "'a.txt' gives 9 bytes of validation text, windows of data.length=64 need 128; "
        "take more text, a smaller data.length or another data.validation.",
    ),
    "BrokenRule": (
        {"step": "simplify", "rule": "every value has metadata", "culprit": "%add"},
        "pass 'simplify' broke a rule (every value has metadata): %add. This is a defect of the pass; "
        "disable='simplify' runs without it.",
    ),
    "UnknownPass": (
        {"name": "simplfy", "where": "disable", "nearest": "simplify"},
        "unknown pass 'simplfy' in disable; did you mean 'simplify'? `wolong passes` lists all.",
    ),
    "BadPassText": (
        {"text": "simplify{", "because": "no closing brace", "example": "fold-constants{max_bytes=4096}"},
        "cannot read pass 'simplify{': no closing brace; write it like 'fold-constants{max_bytes=4096}'.",
    ),
    "TornCheckpoint": (
        {"path": "step-1.pt", "because": "not a zip file"},
        "checkpoint 'step-1.pt' cannot be read: not a zip file; resume from an older one with resume=FILE.",
    ),
    "CheckpointMismatch": (
        {"path": "runs/a", "key": "model.hidden", "theirs": 128, "ours": 64},
        "checkpoint 'runs/a' was made with model.hidden=128, this run has 64; "
        "set it back, or take another run_dir to start afresh.",
    ),
    "CannotWrite": (
        {"path": "step-1.pt", "because": "No space left on device"},
        "cannot write 'step-1.pt': No space left on device; "
        "earlier files of the run are kept, resume when there is room.",
    ),
    "RunDirectoryBusy": (
        {"path": "runs/a"},
        "run_dir='runs/a' is in use by another run; wait for it, or take another run_dir.",
    ),
    "LossNotFinite": (
        {"loss": float("inf"), "step": 7, "path": "step-5.pt"},
        "the loss is inf at step 7; lower optim.lr or trainer.clip. 'step-5.pt' is the last checkpoint.",
    ),
    "NoDoubleBackward": (
        {},
        "a compiled model has no gradients of gradients (create_graph=True was asked for, and then "
        "another backward); call wolong_fx.deoptimize(model) for this step.",
    ),
    "NoBatchedBackward": (
        {},
        "a compiled backward cannot run inside vmap, grad or is_grads_batched=True; call "
        "wolong_fx.deoptimize(model) for this step, or run one backward for each gradient.",
    ),
    "UnexpectedGradient": (
        {"found": "Odd of layout torch.strided"},
        "the gradient of a result of a compiled model is of type Odd of layout torch.strided, its backward "
        "takes plain dense tensors; detach the results that need no gradient, or give their gradients as "
        "dense tensors.",
    ),
}


def test_every_error_of_the_catalogue_has_its_message_tested():
    assert set(MESSAGES) == set(CATALOGUE)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_message_says_what_where_and_what_to_do(name):
    facts, message = MESSAGES[name]
    assert str(CATALOGUE[name](**facts)) == message


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_an_error_survives_the_way_to_another_process(name):
    facts, message = MESSAGES[name]
    copy = pickle.loads(pickle.dumps(CATALOGUE[name](**facts)))
    assert (type(copy), copy.facts, str(copy)) == (CATALOGUE[name], facts, message)


def _raised_with(call: ast.Call) -> set[str] | None:
    names = {keyword.arg for keyword in call.keywords}
    return None if None in names else {name for name in names if name}


def test_every_raise_gives_exactly_the_facts_of_its_template():
    for file in sorted((ROOT / "wolong_fx").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CATALOGUE:
                template = CATALOGUE[node.func.id].template
                wanted = {field for _, field, _, _ in string.Formatter().parse(template) if field}
                given = _raised_with(node)
                assert given is None or wanted <= given, f"{file.relative_to(ROOT)}:{node.lineno}"
