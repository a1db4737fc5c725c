"""N-gram tables of the over-encoding family in checkpoints, whatever the architecture (docs/architectures.md)."""
