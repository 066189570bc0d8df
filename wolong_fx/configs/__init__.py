"""Hydra configuration groups of the training run."""
