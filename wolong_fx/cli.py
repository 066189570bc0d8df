"""`wolong ...`: each command is thin and calls the room that does the work.

Rooms are imported inside their command, so that `wolong --help` answers without waiting for torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from wolong_fx import __version__
from wolong_fx.errors import WolongError
from wolong_fx.options import Options, option_table

if TYPE_CHECKING:
    from wolong_fx.runtime.cache import KernelCache

_EXAMPLES = """\
examples:
  wolong options                    every setting, its default and its environment variable
  wolong options --json             the same, for programs
  wolong passes                     what is done to a graph, in order, and what is switched off
  wolong cache info                 where kernels are kept, how many, how large
  wolong cache prune --max-mb 500   delete the kernels used longest ago until 500 MB are left
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 is success, 1 a failure of the machine, 2 a wrong call or setting."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (WolongError, OSError) as error:
        print(f"wolong: {error}", file=sys.stderr)
        return 2 if isinstance(error, WolongError) else 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="wolong",
        description="Wolong FX compiles PyTorch models made of many small operators into one kernel.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wolong {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    options = commands.add_parser("options", help="every option, its default, its environment variable")
    options.add_argument("--json", action="store_true", help="print one JSON array")
    options.set_defaults(run=show_options)

    passes = commands.add_parser("passes", help="what is done to a graph, in order, and what is switched off")
    passes.set_defaults(run=show_passes)

    cache = commands.add_parser("cache", help="look at the kernel cache, prune it, clear it")
    actions = cache.add_subparsers(title="actions", required=True, metavar="ACTION")
    info = actions.add_parser("info", help="where kernels are kept, how many, how large")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=show_cache)
    prune = actions.add_parser("prune", help="delete the kernels used longest ago above the size cap")
    prune.add_argument("--max-mb", metavar="N", help="a cap of N MB instead of the option cache_size_mb")
    prune.set_defaults(run=prune_cache)
    actions.add_parser("clear", help="delete every kernel").set_defaults(run=clear_cache)
    return parser


def show_options(arguments: argparse.Namespace) -> None:
    """The option table."""
    rows = option_table()
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return
    shown = [(row.name, row.variable, _default_text(row.default), row.meaning) for row in rows]
    _print_table(("option", "variable", "default", "meaning"), shown)


def show_passes(arguments: argparse.Namespace) -> None:
    """The pass table and the steps of code generation, as the options in force would run them."""
    from wolong_fx import codegen
    from wolong_fx.passes.text import check_names
    from wolong_fx.pipeline import pass_table, step_names

    options = Options.of()
    check_names(options.disable, step_names(), where="disable")
    steps = [(p.name, p.numerics.value, sys.modules[type(p).__module__].__doc__) for p in pass_table(options)]
    steps += [(name, "", doc) for name, doc in codegen.STEP_DOCS.items()]
    rows = [
        (name, "off" if name in options.disable else "on", numerics, _first_sentence(name, text))
        for name, numerics, text in steps
    ]
    _print_table(("step", "state", "numerics", "meaning"), rows)


def _first_sentence(name: str, text: str | None) -> str:
    return (text or "").partition("\n")[0].removeprefix(f"{name}: ")


def show_cache(arguments: argparse.Namespace) -> None:
    """Where the kernel cache is and how full."""
    info = _cache().info()
    facts = {key: str(value) if key == "directory" else value for key, value in asdict(info).items()}
    if arguments.json:
        print(json.dumps(facts))
    else:
        used, cap = info.size_bytes / 2**20, info.cap_bytes / 2**20
        print(f"{info.entries} kernels, {used:.1f} of at most {cap:.0f} MB, in {info.directory}")


def prune_cache(arguments: argparse.Namespace) -> None:
    """Delete down to the cap, oldest use first."""
    given = {} if arguments.max_mb is None else {"cache_size_mb": arguments.max_mb}
    print(f"{_cache(**given).prune()} kernels deleted")


def clear_cache(arguments: argparse.Namespace) -> None:
    """Delete every kernel."""
    print(f"{_cache().clear()} kernels deleted")


def _cache(**given: object) -> KernelCache:
    from wolong_fx.runtime.cache import KernelCache

    return KernelCache.of(Options.of(where="the command line", **given))


def _default_text(default: object) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
