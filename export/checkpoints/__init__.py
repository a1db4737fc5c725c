"""The forms of checkpoints, read under one set of names."""
