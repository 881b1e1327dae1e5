"""How a stack is asked to compute: operations, frames, processes."""
