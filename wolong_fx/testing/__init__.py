"""Public test helpers: the float64 oracle, operator samples, golden files."""
