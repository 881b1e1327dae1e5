"""What to look at when a check is red."""
