"""The CPU target: programs as header-free C++ with a persistent thread team and barriers."""
