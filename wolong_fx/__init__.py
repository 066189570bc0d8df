"""Wolong FX: PyTorch models made of many small operators, compiled into one kernel."""

from __future__ import annotations

__version__ = "0.1.0"
