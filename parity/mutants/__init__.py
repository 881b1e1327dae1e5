"""Planted bugs, as data: which stack, which module, which text, and what stands in its place."""
