"""A kernel as one file that compiles it by itself: what the compiler's process runs, and what is left to
reproduce a failure with.

The file needs Triton, and neither a GPU nor Wolong FX: what emitted text imports of ours stands in it.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from pprint import pformat

from wolong_fx.runtime.gpu.image import TritonImage
from wolong_fx.toolchain.compiler import keep_source, kept_path

LIBRARY = Path(__file__).parents[2] / "codegen" / "triton"
"""Where the modules are that emitted text imports."""

_IMPORT = re.compile(r"^from wolong_fx\.codegen\.triton\.(\w+) import (.*)$", re.MULTILINE)

_ALIGNED = [["tt.divisibility", 16]]

_TAIL = """

def compile_kernel():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn={kernel},
        signature={signature},
        constexprs={constexprs},
        attrs={{(i,): {aligned} for i in {pointers}}},
    )
    return triton.compile(source, target=GPUTarget({target}), options={options})


if __name__ == "__main__":
    compile_kernel()
    print("compiled")
"""

_HEAD = """\
A kernel of Wolong FX that Triton made no binary of for {architecture}: {because}

Reproduce it, without a GPU and without Wolong FX:
    {command}
Seen with Triton {triton}, Python {python}, {system}.
"""

_LAST_WORDS = 20
"""Lines of what the compiler said that are worth keeping."""


def standalone(image: TritonImage) -> str:
    """A module whose `compile_kernel()` compiles the image's kernel."""
    signature = image.signature
    options = {
        "num_warps": image.warps,
        "num_stages": image.stages,
        "launch_cooperative_grid": image.is_cooperative,
        "enable_fp_fusion": True,
    }
    tail = _TAIL.format(
        signature=_literal({**signature, "G": "constexpr"}),
        constexprs={"G": image.blocks},
        aligned=_ALIGNED,
        pointers=[i for i, type in enumerate(signature.values()) if type.startswith("*")],
        kernel=image.kernel,
        target=f'"cuda", {image.architecture.capability}, 32',
        options=_literal(options),
    )
    return _IMPORT.sub(_pasted, image.text) + tail


def keep_repro(image: TritonImage, because: str, said: str, limit: float) -> str:
    """Keep the file under a head that says what went wrong; its path, or why there is none.

    said: by the compiler, in the end
    limit: seconds after which a compiler counts as stuck
    """
    module = standalone(image)
    path = kept_path(module, ".py")
    head = _HEAD.format(
        architecture=image.architecture.name,
        because=because,
        # Triton keeps what it has compiled: it must not answer from there.
        command=f"TRITON_ALWAYS_COMPILE=1 timeout {limit:g} {sys.executable} -P {path}",
        triton=version("triton"),
        python=platform.python_version(),
        system=platform.platform(),
    )
    lines = said.strip().splitlines()[-_LAST_WORDS:]
    if lines:
        head += "\n".join(["Its last words:", *("    " + line for line in lines)])
    comment = "\n".join(f"# {line}".rstrip() for line in head.splitlines())
    return keep_source(f"{comment}\n\n{module}", path)


def _pasted(statement: re.Match[str]) -> str:
    """What stands in place of an import from a module of ours: the module, and the name that it gave."""
    text = (LIBRARY / f"{statement[1]}.py").read_text()
    name, _, alias = statement[2].partition(" as ")
    return text + (f"\n\n{alias} = {name}" if alias and alias != name else "")


def _literal(values: Mapping[str, object]) -> str:
    """As it stands in an argument list."""
    return pformat(dict(values), width=90, sort_dicts=False).replace("\n", "\n        ")
