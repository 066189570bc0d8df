"""Collectives from the memory that tensors are born in. Nothing yet; it imports no compiler room."""
