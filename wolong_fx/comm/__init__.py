"""Collectives from the memory that tensors are born in. Nothing here yet; it never imports a compiler room."""
