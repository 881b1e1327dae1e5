"""Paired statistics: the unit is a task, clustered by family; training seeds cross the tasks. Plain arrays in, numbers out."""
