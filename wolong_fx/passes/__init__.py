"""FX graph in, FX graph out: the passes that pipeline.py lists, and the manager that runs them."""
