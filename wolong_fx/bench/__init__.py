"""Benchmarks: what a model takes with us, with others, by hand, and at the machine's limit.

`table` declares the rows, `contenders` makes what is measured, `race` measures a row, `bars` are those of
`wolong bench`.
"""
