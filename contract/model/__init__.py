"""Models: what lies on disk, and where both stacks start."""
