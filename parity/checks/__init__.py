"""The checks: one file an operation, all of them in `registry`."""
