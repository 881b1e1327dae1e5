"""Shows whether two stacks compute the same thing, how precisely, and whether their fast paths keep to it.

Imports no machine-learning framework and no stack: it asks them, each in a process of its own.
"""
