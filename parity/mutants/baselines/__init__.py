"""What comparisons as teams usually make them would have seen of the planted bugs (docs/evidence.md)."""
