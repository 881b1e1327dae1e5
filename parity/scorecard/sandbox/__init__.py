"""Runs a program that nobody trusts: its own namespaces, limits, a deadline. What it says over its pipe is data, and proves nothing."""
