"""Building, caching, loading and launching kernels; arenas and the executor of partitioned graphs."""
