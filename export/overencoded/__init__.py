"""Over-encoded byte transformers: checkpoints to graphs, the reference, calibration (docs/architectures.md)."""
