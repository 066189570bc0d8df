from __future__ import annotations

import ast
import re
import string
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wolong_fx.errors import BadOptionValue, UnknownOption
from wolong_fx.options import CHOICES, Options, is_enabled, option_table

ROOT = Path(__file__).parents[1]
ENVIRONMENT_PAGE = ROOT / "docs/environment.md"
NAMES = [field.name for field in fields(Options)]

# Changing this list changes what users may write: say so in CHANGELOG.md.
EXPECTED_NAMES = [
    *("target", "threads", "isa", "disable", "dump", "dump_dir", "cache_dir", "cache_size_mb", "min_ops"),
    "verify",
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("WOLONG_CACHE_DIR")


def test_the_option_list_only_changes_on_purpose():
    assert NAMES == EXPECTED_NAMES


def test_without_settings_every_option_has_its_default():
    assert Options.of() == Options()


def test_options_are_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError):
        Options().threads = 2  # type: ignore[misc]
    assert len({Options(), Options.of(), Options.of(threads=2)}) == 2


def test_an_unknown_option_names_where_it_stood_and_the_nearest_right_one():
    with pytest.raises(UnknownOption, match=r"'tragte' in torch.compile; did you mean 'target'\?"):
        Options.of(where="torch.compile", tragte="cpu")


@given(st.sampled_from(NAMES), st.data())
def test_one_wrong_letter_is_traced_back_to_the_option(name, data):
    position = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from([c for c in string.ascii_lowercase if c != name[position]]))
    with pytest.raises(UnknownOption) as caught:
        Options.of(**{name[:position] + letter + name[position + 1 :]: 1})
    assert caught.value.facts["nearest"] == name


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_value_outside_the_choices_lists_the_choices(name):
    with pytest.raises(BadOptionValue) as caught:
        Options.of(**{name: "gpux"})
    assert all(repr(choice) in str(caught.value) for choice in CHOICES[name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", -1),
        ("threads", "two"),
        ("threads", True),
        ("threads", 1.5),
        ("threads", None),
        ("min_ops", ""),
        ("dump_dir", 3),
        ("dump", 3),
        ("dump", ["graph", 1]),
        ("dump", ["graphs"]),
        ("target", None),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_option_and_value(name, value):
    with pytest.raises(BadOptionValue, match=f"option '{name}' cannot be"):
        Options.of(**{name: value})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("target", "reference", "reference"),
        ("threads", " 2 ", 2),
        ("disable", "fold-constants, simplify,", ("fold-constants", "simplify")),
        ("dump", "", ()),
        ("cache_dir", "somewhere", "somewhere"),
    ],
)
def test_the_environment_sets_options_as_text(monkeypatch, name, text, value):
    monkeypatch.setenv(f"WOLONG_{name.upper()}", text)
    assert getattr(Options.of(), name) == value


def test_a_keyword_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("WOLONG_THREADS", "7")
    assert Options.of(threads=1).threads == 1


def test_a_bad_value_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("WOLONG_THREADS", "many")
    with pytest.raises(BadOptionValue, match=r"'threads' cannot be 'many' in WOLONG_THREADS"):
        Options.of()


def test_wolong_0_is_the_kill_switch(monkeypatch):
    assert is_enabled()
    monkeypatch.setenv("WOLONG", "0")
    assert not is_enabled()


def test_every_option_says_what_it_means():
    assert [row.name for row in option_table() if not row.meaning] == []


def test_the_environment_page_lists_every_option_with_its_default_and_meaning():
    page = ENVIRONMENT_PAGE.read_text()
    for row in option_table():
        default = ",".join(row.default) if isinstance(row.default, tuple) else str(row.default)
        line = f"| `{row.variable}` | {f'`{default}`' if default else 'empty'} | {row.meaning} |"
        assert line in page, f"docs/environment.md should have this line:\n{line}"


def _is_environment(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def _variables_read(tree: ast.AST) -> set[str]:
    """Names read literally: os.environ[x], os.environ.get(x), os.getenv(x), x in os.environ."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_environment(node.value):
            found.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr == "getenv" or _is_environment(node.func.value):
                found.append(node.args[0])
        elif isinstance(node, ast.Compare) and _is_environment(node.comparators[0]):
            found.append(node.left)
    return {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _variables_by_file() -> dict[str, set[str]]:
    files = sorted((ROOT / "wolong_fx").rglob("*.py"))
    return {str(f.relative_to(ROOT)): _variables_read(ast.parse(f.read_text())) for f in files}


def test_the_environment_page_lists_exactly_the_variables_that_are_read():
    documented = set(re.findall(r"^\| `(\w+)` \|", ENVIRONMENT_PAGE.read_text(), re.MULTILINE))
    read = set().union(*_variables_by_file().values()) | {row.variable for row in option_table()}
    assert documented == read


def test_only_options_reads_variables_of_our_own():
    readers = {
        file for file, names in _variables_by_file().items() if any(n.startswith("WOLONG") for n in names)
    }
    assert readers == {"wolong_fx/options.py", "wolong_fx/comm/settings.py"}  # which may not know options
