"""A causal transformer on bytes with over-encoded input (docs/architectures.md)."""
