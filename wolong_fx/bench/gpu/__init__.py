"""Benchmarks on a GPU: each question's rows, every row measured in a process of its own.

`question` is the command behind every file of `benchmarks/gpu`, `apart` runs the rows' processes, `row` races
contenders, `device` is what they run on. The CPU stands in for a GPU in the dry form (`--dry`).
"""
