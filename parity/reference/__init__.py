"""What each operation means, in NumPy, written from its paper: the oracle that no stack shares."""
