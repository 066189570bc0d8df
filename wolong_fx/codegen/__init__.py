"""From an FX partition to a program, its schedule, its source and a callable."""
