"""From a user's module to a functional core-ATen FX graph with fake values and the user's lines."""
