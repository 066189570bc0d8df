"""The extension that calls a compiled model without Dynamo (direct_call.cpp): built once a machine, cached.

It is built against the headers of the Python and the torch that run, so that it reads their objects as they
lay them out; the key in the cache holds the versions of both.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from wolong_fx import _torch_compat
from wolong_fx.options import Options
from wolong_fx.runtime.kernel import Helpers
from wolong_fx.toolchain.cache import KernelCache, cache_key
from wolong_fx.toolchain.compiler import build_library

SOURCE = Path(__file__).with_suffix(".cpp")
NAME = "wolong_direct_call"

# Kinds of a structure's nodes, as the enum Kind has them.
TENSOR, CONSTANT, TUPLE, LIST, DICT = range(5)

_TORCH = Path(torch.__file__).parent


class DirectCall(NamedTuple):
    """The extension's contents, or why there is none.

    call: Call(fallback), a callable with add(entry, limit) and forget()
    entry: Entry(*EntryParts(...))
    newest: the latest version tag of a tuple of dictionaries; each change of one of them raises it
    helpers: what `Kernel.launch_with` takes
    """

    call: Callable[[Callable[..., Any]], Any] | None = None
    entry: Callable[..., Any] | None = None
    newest: Callable[[tuple[dict[Any, Any], ...]], int] | None = None
    helpers: Helpers | None = None
    because: str = ""


class EntryParts(NamedTuple):
    """What an Entry consists of; those from `result` on are missing where `function` is the model's own call.

    arguments: the structure of (args, kwargs)
    wanted: tensors like those among the arguments
    modules, dicts: the model, which no longer is what it was when one of these dictionaries changed
    places: (dictionary, key, object) or (cell of a closure, None, object): there it must still stand
    function: takes the list of inputs, returns the outputs; without `inputs`, takes what the model takes
    result: the structure of the result
    tensors: of the model, whose metadata must stay
    inputs: each a place among the tensors of the arguments, or one of `tensors`
    written: positions of those inputs that `function` writes
    moves_versions: whether their version counters move first, because `function` does not do it
    guard: is called with `scope` and answers True while all else is as it was
    rest, namespaces: after `guard` has held, `rest` is enough as long as no name in these changed; with no
        namespaces it is never called
    """

    arguments: tuple[Any, ...]
    wanted: tuple[torch.Tensor, ...]
    modules: tuple[object, ...]
    dicts: tuple[dict[str, Any], ...]
    places: tuple[tuple[Any, str | None, object], ...]
    function: Callable[..., Any]
    result: tuple[Any, ...] = (TUPLE, ())
    tensors: tuple[torch.Tensor, ...] = ()
    inputs: tuple[int | torch.Tensor, ...] | None = None
    written: tuple[int, ...] = ()
    moves_versions: bool = True
    guard: Callable[[Any], bool] | None = None
    rest: Callable[[Any], bool] | None = None
    namespaces: tuple[dict[str, Any] | ModuleType, ...] = ()
    scope: dict[str, Any] | None = None


def prepare_direct_call(options: Options) -> None:
    """Begin to build the extension beside what the caller goes on to do."""
    threading.Thread(target=find_direct_call, args=(options,), daemon=True).start()


def find_direct_call(options: Options) -> DirectCall:
    """The extension, built when the cache does not have it; never raises, waits for a build under way."""
    with _lock:
        return _find(options.cache_dir)


_lock = threading.Lock()


@cache
def _find(cache_dir: str) -> DirectCall:
    access = _torch_compat.find_tensor_access()
    because = why_impossible(sys.version_info[:2], Path(sysconfig.get_path("include") or "."))
    if because or access is None:
        return DirectCall(because=because or "this torch lays its tensors out in a way that is not known")
    try:
        module = _load(Options.of(cache_dir=cache_dir))
        module.read_tensors_at(access.offset, torch.Tensor)
    except Exception as error:
        return DirectCall(because=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    return DirectCall(
        module.Call, module.Entry, module.newest, Helpers(module.write_addresses, module.make_allocator)
    )


def why_impossible(version: tuple[int, int], headers: Path) -> str:
    """Why the extension cannot be built for this Python; "" if it can."""
    if not (3, 11) <= version <= (3, 12):
        return f"Python {version[0]}.{version[1]} does not tell when a dictionary changes"
    if not (headers / "Python.h").is_file():
        return f"Python.h is not in {str(headers)!r} (Debian: apt-get install python3-dev)"
    return ""


def _load(options: Options) -> ModuleType:
    source, flags = SOURCE.read_text(), _flags()

    def build(directory: Path) -> Path:
        return build_library(source, flags, directory)

    return KernelCache.of(options).fetch(cache_key(source, flags), build, _import)


def _flags() -> tuple[str, ...]:
    versions = f"{torch.__version__} {torch.version.git_version} {sys.version} {sys.abiflags}"
    return (
        "-fexceptions",  # torch throws, and its headers ask for types at run time
        "-frtti",
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-DWOLONG_BUILT_FOR={_quoted(versions)}",
        f"-I{sysconfig.get_path('include')}",
        f"-I{sysconfig.get_path('platinclude')}",
        f"-I{_TORCH / 'include'}",
        f"-L{_TORCH / 'lib'}",
        "-Wl,--no-as-needed",  # the libraries stand before the source that needs them
        "-lc10",
        "-ltorch_cpu",
        "-ltorch_python",
    )


def _quoted(text: str) -> str:
    return '"' + "".join(c if c.isalnum() or c in ".+-" else "_" for c in text) + '"'


def _import(path: str) -> ModuleType:
    spec = spec_from_file_location(NAME, loader=ExtensionFileLoader(NAME, path))
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
