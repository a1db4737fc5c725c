"""Quantization and pruning methods, matrix by matrix."""
