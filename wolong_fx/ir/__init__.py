"""The program IR shared by all targets: index expressions, tile programs, stages, loops, buffers."""
