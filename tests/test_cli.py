from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wolong_fx
from wolong_fx.cli import build_parser, main
from wolong_fx.options import Options, option_table
from wolong_fx.toolchain.cache import KernelCache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of three entries of one megabyte each, the default one of this test's commands."""
    monkeypatch.setenv("WOLONG_CACHE_DIR", str(tmp_path))
    cache = KernelCache.of(Options.of())

    def build(directory: Path) -> Path:
        made = directory / "kernel.so"
        made.write_bytes(bytes(1 << 20))
        return made

    for key in ("00aa", "01bb", "02cc"):
        cache.fetch(key, build, load=str)
    return cache


def test_options_shows_every_option_with_its_variable_and_default(capsys):
    assert main(["options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [re.split(r"  +", line)[:2] for line in lines[1:]]
    assert shown == [[row.name, row.variable] for row in option_table()]


def test_options_as_json_carries_the_whole_table(capsys):
    main(["options", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(json.dumps([row._asdict() for row in option_table()]))


def test_calibrate_shows_and_keeps_what_it_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WOLONG_CACHE_DIR", str(tmp_path))
    assert main(["calibrate", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads(Path(said["file"]).read_text())["costs"] == said["costs"]
    assert main(["calibrate"]) == 0
    assert f"kept in {said['file']}" in capsys.readouterr().out


def test_passes_shows_every_step_in_order_with_what_it_does(capsys):
    from wolong_fx.pipeline import step_names

    assert main(["passes"]) == 0
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert tuple(row[0] for row in rows) == step_names()
    assert [row[0] for row in rows if row[1] != "on" or len(row[-1].split()) < 4] == []


def test_passes_says_what_is_switched_off_and_refuses_an_unknown_name(capsys, monkeypatch):
    monkeypatch.setenv("WOLONG_DISABLE", "simplify")
    main(["passes"])
    assert re.findall(r"^(\S+) +off", capsys.readouterr().out, re.MULTILINE) == ["simplify"]
    monkeypatch.setenv("WOLONG_DISABLE", "simplfy")
    assert main(["passes"]) == 2
    assert "'simplify'" in capsys.readouterr().err


def test_cache_info_counts_what_is_there(cache, capsys):
    assert main(["cache", "info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["entries"], facts["directory"]) == (3, str(cache.directory))
    assert facts["size_bytes"] >= 3 << 20
    main(["cache", "info"])
    assert f"3 kernels, 3.0 of at most 2048 MB, in {cache.directory}" in capsys.readouterr().out


def test_cache_prune_keeps_what_fits_under_the_cap(cache, capsys):
    assert main(["cache", "prune"]) == 0
    assert cache.info().entries == 3
    assert main(["cache", "prune", "--max-mb", "2"]) == 0
    assert "2 kernels deleted" in capsys.readouterr().out
    assert cache.info().entries == 1


def test_cache_clear_deletes_everything(cache, capsys):
    assert main(["cache", "clear"]) == 0
    assert "3 kernels deleted" in capsys.readouterr().out
    assert cache.info().entries == 0


def test_a_wrong_value_is_one_line_and_exit_code_2(capsys):
    assert main(["cache", "prune", "--max-mb", "lots"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wolong: option 'cache_size_mb' cannot be 'lots' in the command line")


def test_a_failing_machine_is_one_line_and_exit_code_1(capsys, monkeypatch):
    def failing(cache: KernelCache) -> int:
        raise PermissionError(13, "Permission denied", "kernels")

    monkeypatch.setattr(KernelCache, "clear", failing)
    assert main(["cache", "clear"]) == 1
    assert capsys.readouterr().err == "wolong: [Errno 13] Permission denied: 'kernels'\n"


@pytest.mark.parametrize("argv", [[], ["compile"], ["cache"], ["options", "--yaml"]])
def test_a_wrong_call_exits_with_2_and_shows_the_usage(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: wolong" in capsys.readouterr().err


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"wolong {wolong_fx.__version__}\n"


def test_every_example_of_the_help_can_be_parsed():
    examples = re.findall(r"^  wolong (.+?)(?:  |$)", build_parser().epilog or "", re.MULTILINE)
    assert len(examples) > 2
    for example in examples:
        assert callable(build_parser().parse_args(example.split()).run)


def test_a_reader_who_has_enough_is_no_failure():
    command = f"'{sys.executable}' -P -m wolong_fx.cli options | true"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
