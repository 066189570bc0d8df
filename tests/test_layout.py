"""What keeps the house in order: links, layering, import rules, sizes, public names, light start-up."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import wolong_fx

ROOT = Path(__file__).parents[1]
LINKED_ROOMS = ("passes", "codegen", "comm", "sched", "configs")
SOURCES = sorted(f for d in ("wolong_fx", "benchmarks", "examples") for f in (ROOT / d).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_FUNCTION_LINES = 60

# Changing this list changes what users may import: say so in CHANGELOG.md.
PUBLIC_NAMES = ["Options", "Stats", "deoptimize", "optimize", "stats"]


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd="/"
    )


# ---- links and packaging


@pytest.mark.parametrize("room", LINKED_ROOMS)
def test_a_linked_room_opens_from_the_root(room):
    assert os.readlink(ROOT / room) == f"wolong_fx/{room}"
    assert (ROOT / room / "__init__.py").is_file()


def test_only_wolong_fx_is_packaged():
    from setuptools import find_packages

    include = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packaged = set(find_packages(str(ROOT), include=include))
    assert {name.split(".")[0] for name in packaged} == {"wolong_fx"}
    rooms = {f"wolong_fx.{d.parent.name}" for d in (ROOT / "wolong_fx").glob("*/__init__.py")}
    assert rooms <= packaged


def test_every_file_that_the_package_reads_is_package_data():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["wolong_fx"]
    package = ROOT / "wolong_fx"
    data = {f for pattern in patterns for f in package.glob(pattern)}
    others = {f for f in package.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert others - data == set()


def test_entry_points_name_what_can_be_loaded():
    (backend,) = entry_points(group="torch_dynamo_backends", name="wolong")
    (script,) = entry_points(group="console_scripts", name="wolong")
    assert callable(backend.load())
    assert callable(script.load())


# ---- imports


def test_the_import_contract_is_kept():
    run = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    checked = python("-c", run, "--config", str(ROOT / "pyproject.toml"), PYTHONPATH=str(ROOT))
    contracts = len(PYPROJECT["tool"]["importlinter"]["contracts"])
    assert f"Contracts: {contracts} kept, 0 broken." in checked.stdout, checked.stdout + checked.stderr


def imported_modules(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Absolute module names that a file imports; `from a import b` yields both a and a.b."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def test_no_room_is_imported_by_its_bare_name():
    bare = [
        place(file, node)
        for file in (*SOURCES, *TESTS)
        for name, node in imported_modules(file)
        if name.split(".")[0] in LINKED_ROOMS
    ]
    assert bare == [], "`sched` is the standard library's, `comm` is IPython's: write wolong_fx.<room>"


def attribute_chains(file: Path) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", text):
                yield text, node


def test_everything_the_package_imports_is_a_declared_dependency():
    """Whatever is imported anywhere in the package comes from the standard library, us, or pyproject.toml."""
    project = PYPROJECT["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    names = {re.split(r"[ >=;\[]", requirement)[0].replace("-", "_") for requirement in declared}
    known = set(sys.stdlib_module_names) | {"wolong_fx", "hydra", "omegaconf"} | names
    package = [f for f in SOURCES if f.is_relative_to(ROOT / "wolong_fx")]
    strangers = {
        f"{place(file, node)} {name}"
        for file in package
        for name, node in imported_modules(file)
        if name.split(".")[0] not in known
    }
    assert strangers == set()


def is_private_torch(name: str) -> bool:
    first, *rest = name.split(".")
    return first == "torch" and any(part.startswith("_") and not part.startswith("__") for part in rest)


def test_private_torch_names_are_used_in_torch_compat_only():
    private = {
        f"{place(file, node)} {name}"
        for file in SOURCES
        if file.name != "_torch_compat.py"
        for name, node in (*imported_modules(file), *attribute_chains(file))
        if is_private_torch(name)
    }
    assert private == set(), (
        "give it a function in wolong_fx/_torch_compat.py, with the versions it was tried on"
    )


def test_what_is_private_is_told_from_what_is_public():
    assert is_private_torch("torch._dynamo.config")
    assert is_private_torch("torch.utils._pytree.tree_map")
    assert not is_private_torch("torch.__version__")
    assert not is_private_torch("torch.fx.Node")


# ---- start-up


def loaded_by(statement: str) -> set[str]:
    shown = python(
        "-c", f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    return set(json.loads(shown.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import wolong_fx",
        "import wolong_fx.options, wolong_fx.ledger, wolong_fx.errors",
        "import wolong_fx.sched",
        "from wolong_fx.cli import main; main(['options'])",
        "from wolong_fx.cli import build_parser; build_parser().format_help()",
    ],
)
def test_what_must_start_quickly_loads_no_heavy_library(statement):
    assert loaded_by(statement) & {"torch", "triton", "numpy", "hydra", "matplotlib"} == set()


def test_help_takes_less_than_200_milliseconds_of_processor_time():
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    runs = []
    for _ in range(3):
        before = spent()
        assert python("-m", "wolong_fx.cli", "--help").returncode == 0
        runs.append(spent() - before)
    assert min(runs) < 0.2


# ---- public names and sizes


def test_the_public_names_only_change_on_purpose():
    assert sorted(wolong_fx.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_can_be_had_and_says_what_it_is(name):
    assert getattr(wolong_fx, name).__doc__
    assert name in dir(wolong_fx)


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{place(file, function)} {function.name}: {length(function)} lines"
        for file in SOURCES
        for function in functions(file)
        if length(function) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_half_of_all_functions_have_fewer_than_ten_lines():
    lengths = sorted(length(function) for file in SOURCES for function in functions(file))
    assert lengths[len(lengths) // 2] < 10


# ---- tests themselves


def test_only_the_capability_table_decides_to_skip():
    wants = re.compile(r"\bpytest\.(skip|importorskip|xfail)\b|\bmark\.(skip|skipif|xfail)\b")
    skips = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in TESTS
        if file.name not in ("conftest.py", Path(__file__).name)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if wants.search(line)
    ]
    assert skips == [], "add a row to CAPABILITIES in tests/conftest.py and mark the test with it"


def test_links_in_the_documentation_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    local = [(page, link) for page, link in links if "://" not in link]
    assert local
    assert [f"{p.name}: {link}" for p, link in local if not (p.parent / link).exists()] == []
