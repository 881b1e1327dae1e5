"""From text to what a stack takes: token ids, labels, order, packing."""
