"""Scorecards: how well what each stack trained does a suite of tasks, and whether that is evidence enough to promote one."""
