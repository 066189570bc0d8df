"""A job queue for training runs. Nothing here yet; it never imports torch."""
