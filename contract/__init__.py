"""The control plane: what a fine-tune run is, and how a stack is asked to compute it.

Imports no machine-learning framework.
"""
