"""The files that a run writes, and what is done with files alone: the merge, conversions."""
