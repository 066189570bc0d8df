"""Loop fission: what a rolled loop need not compute step by step leaves its body; see split_loops.py."""
