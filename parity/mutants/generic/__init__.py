"""Bugs that nobody thought of: small changes of the stacks' own source, drawn by a seed, and what becomes of each."""
