"""The reference machine: runs a program slowly, in random block order, on torch tensors; the oracle of the other targets."""
