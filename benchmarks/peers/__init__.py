"""The tools that are timed: one module each, run as `python -m peers` in an environment of its own."""
