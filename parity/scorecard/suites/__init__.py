"""Suites of tasks, each made by a script."""
