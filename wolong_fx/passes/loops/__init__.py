"""Rolled loops in FX graphs: torch's scan operator read (scan.py), edited (edit_scan.py) and inlined."""
