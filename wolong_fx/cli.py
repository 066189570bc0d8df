"""`wolong ...`: each command is thin and calls the room that does the work.

Rooms are imported inside their command, so that `wolong --help` answers without waiting for torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wolong_fx import __version__
from wolong_fx.errors import WolongError
from wolong_fx.options import Options, option_table
from wolong_fx.report.measure import add_output_arguments, publish

if TYPE_CHECKING:
    from wolong_fx.toolchain.cache import KernelCache

_EXAMPLES = """\
examples:
  wolong options                    every setting, its default and its environment variable
  wolong options --json             the same, for programs
  wolong passes                     what is done to a graph, in order, and what is switched off
  wolong cache info                 where kernels are kept, how many, how large
  wolong cache prune --max-mb 500   delete the kernels used longest ago until 500 MB are left
  wolong calibrate                  measure what work costs here, for choices that depend on it
  wolong bench lstm80               what each idea is worth on an LSTM of 80 steps, as bars
  wolong emit my.models:Net --input 40x4x64   the kernels of a model, for a GPU that need not be here
"""

_EMIT_EXAMPLES = """\
Nothing is launched, and no GPU is needed: kernels for one are compiled to its machine code, to say what they
take. The model runs once, eagerly.

examples:
  wolong emit my.models:Net --input 40x4x64                      its Triton kernels, for an H100 or H200
  wolong emit my.models:Net --input 8x16:int64 --arch sm_80      of token numbers, for an A100
  wolong emit my.models:Net --input 40x4x64 --train              forward and backward
  wolong emit my.models:Net --input 40x4x64 --target cpp         what runs on this machine
  wolong emit my.models:Net --input 40x4x64 --json | jq '.kernels[].registers'
"""

_CALIBRATE_EXAMPLES = """\
Takes less than two seconds, best while nothing else runs. Models compiled from then on are planned by what
was measured, others by what is usual. Once for a machine, and once for each number of threads used on it.

examples:
  wolong calibrate                       measure, show, keep
  wolong calibrate --json | jq .costs    the same, for programs
  WOLONG_THREADS=1 wolong calibrate      for models that run on one thread
"""

_BENCH_EXAMPLES = """\
examples:
  wolong bench lstm80                          batch 1, hidden 256; about a minute, Inductor takes most of it
  wolong bench lstm80 --without inductor       without it
  wolong bench lstm80 --batch 16 --hidden 128
  wolong bench lstm80 --write lstm80.json      keep the figures, with machine and versions
  wolong bench lstm80 --show lstm80.json       the bars of kept figures
  wolong bench lstm80 --json | jq .ms          for programs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 is success, 1 a failure of the machine, 2 a wrong call or setting."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it, say `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
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

    calibrate = commands.add_parser(
        "calibrate",
        help="measure what work costs on this machine, and keep it",
        epilog=_CALIBRATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("--json", action="store_true", help="print one JSON object")
    calibrate.set_defaults(run=calibrate_machine)

    _add_emit(commands)
    bench = commands.add_parser("bench", help="measure what this machine gives")
    _add_lstm80(bench.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK"))
    return parser


def _add_emit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    emit = commands.add_parser(
        "emit",
        help="show the kernels of a model, without a GPU",
        epilog=_EMIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    emit.add_argument("model", metavar="PKG.MOD:Model", help="a module, or what makes one without arguments")
    emit.add_argument(
        "--input", action="append", default=[], metavar="SHAPE[:DTYPE]", help="once for each input"
    )
    emit.add_argument("--target", choices=("triton", "cpp", "reference"), default="triton")
    emit.add_argument("--arch", choices=("sm_80", "sm_90", "sm_100"), default="sm_90", help="of the GPU")
    emit.add_argument("--train", action="store_true", help="the kernels of a training step")
    emit.add_argument("--json", action="store_true", help="print one JSON object")
    emit.set_defaults(run=emit_kernels)


def _add_lstm80(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lstm80 = benchmarks.add_parser(
        "lstm80",
        help="an LSTM of 80 steps: eager, batched, fused, packed, nn.LSTM, Inductor",
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, value, meaning in (
        ("steps", 80, "length of the sequence"),
        ("batch", 1, "sequences in a call"),
        ("hidden", 256, "width of input and state"),
        ("rounds", 40, "samples of each bar, at least 2"),
    ):
        lstm80.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{meaning} ({value})")
    lstm80.add_argument("--without", nargs="+", default=(), metavar="BAR", help="bars to leave out")
    lstm80.add_argument("--show", metavar="FILE", help="measure nothing: the bars of kept figures")
    add_output_arguments(lstm80)
    lstm80.set_defaults(run=bench_lstm80)


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
    from wolong_fx.pipeline import all_passes, step_names

    options = Options.of()
    check_names(options.disable, step_names(), where="disable")
    steps = [(p.name, p.numerics.value, sys.modules[type(p).__module__].__doc__) for p in all_passes(options)]
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


def calibrate_machine(arguments: argparse.Namespace) -> None:
    """Measure what work costs here, and keep it."""
    from wolong_fx.runtime.calibrate import calibrate

    costs, path = calibrate(Options.of())
    if arguments.json:
        print(json.dumps({"file": str(path), "costs": costs.as_json()}, indent=2))
        return
    _print_table(("cost", "measured"), [(name, f"{value:g}") for name, value in costs.as_json().items()])
    print(f"kept in {path}")


def bench_lstm80(arguments: argparse.Namespace) -> None:
    """The bars of LSTM-80, measured now or kept in a file."""
    from wolong_fx.bench.bars import bars_screen, measure_bars
    from wolong_fx.bench.race import Effort
    from wolong_fx.report.screen import show_status

    if arguments.show:
        print(bars_screen(json.loads(Path(arguments.show).read_text())))
        return
    shape = {name: getattr(arguments, name) for name in ("steps", "batch", "hidden", "without")}
    results = measure_bars(**shape, effort=Effort(rounds=arguments.rounds), progress=show_status)
    show_status("")
    publish(results, arguments, bars_screen)


def emit_kernels(arguments: argparse.Namespace) -> None:
    """The kernels of a model as text, with what they take."""
    from wolong_fx.emit import emission_screen, emit_model, find_model, make_input
    from wolong_fx.report.screen import show_status
    from wolong_fx.runtime.gpu import ARCHITECTURES

    model, inputs = find_model(arguments.model), [make_input(words) for words in arguments.input]
    emission = emit_model(
        model,
        inputs,
        target=arguments.target,
        architecture=ARCHITECTURES[arguments.arch],
        trains=arguments.train,
        progress=show_status,
    )
    show_status("")
    print(json.dumps(emission.as_json(), indent=2) if arguments.json else emission_screen(emission))


def _cache(**given: object) -> KernelCache:
    from wolong_fx.toolchain.cache import KernelCache

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
