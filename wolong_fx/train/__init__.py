"""The Hydra-configured training run, the only room that knows all others: `python -m wolong_fx.train`."""
