"""Building the core and the glue between it and torch, once for each compiler, torch and Python.

Both go to the cache of kernels: whoever asks first builds, everyone else waits for it.
"""

from __future__ import annotations

import ctypes
import re
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch.utils import cpp_extension

from wolong_fx.comm.settings import CommSettings
from wolong_fx.toolchain import KernelCache, build_library, cache_key, choose_isa, isa_flags

CORE = Path(__file__).with_name("core")
GLUE = "wolong_comm_glue"

Library = TypeVar("Library")

_INCLUDE = re.compile(r'^#include "(\w+\.h)"\n', re.MULTILINE)


def amalgamate(file: Path) -> str:
    """A source with the headers beside it put in, each once: what is built is what its key is made of."""
    seen: set[str] = set()

    def text_of(path: Path) -> str:
        text = path.read_text().replace("#pragma once\n", "")
        return _INCLUDE.sub(lambda found: put_in(found[1]), text)

    def put_in(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return text_of(file.with_name(name))

    return text_of(file)


@cache
def load_core() -> ctypes.CDLL:
    """The core. Its names are global, where the glue finds them. Raises NoCompiler and CompilerFailed."""
    flags = ("-O3", *isa_flags(choose_isa("auto")))
    return _fetch("core.cpp", flags, lambda path: ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL))


@cache
def load_glue() -> ModuleType:
    """The extension module with the class Backend. Raises NoCompiler and CompilerFailed."""
    load_core()
    flags = (
        "-std=c++20",
        "-fexceptions",
        "-frtti",
        "-O1",  # it only hands on: -O2 takes twice as long to build
        f"-DWOLONG_GLUE={GLUE}",
        f'-DBUILT_FOR="{torch.__version__}"',  # read by nobody: it makes the key another
        f"-I{sysconfig.get_paths()['include']}",
        *(f"-I{path}" for path in cpp_extension.include_paths()),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        *("-Wl,--no-as-needed", "-ltorch_python", "-ltorch_cpu", "-lc10"),
    )
    return _fetch("backend.cpp", flags, _import_glue, notice="building the process group, once: about 15 s")


def _fetch(name: str, flags: Sequence[str], load: Callable[[str], Library], notice: str = "") -> Library:
    source = amalgamate(CORE / name)

    def build(directory: Path) -> Path:
        if notice:
            print(f"wolong: {notice}", file=sys.stderr, flush=True)
        return build_library(source, flags, directory)

    cache = KernelCache.of(CommSettings.from_environment())
    return cache.fetch(cache_key(source, flags), build, load)


def _import_glue(path: str) -> ModuleType:
    spec = spec_from_file_location(GLUE, path, loader=ExtensionFileLoader(GLUE, path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
