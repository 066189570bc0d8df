"""Where in the user's program a call was made."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def user_call_site() -> str:
    """`file:line in function` of the innermost frame outside torch and this package.

    A thread that runs none of the user's frames (autograd's) is in a backward pass.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((*_NOT_THE_USERS, "<")):
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    return "the backward pass"
