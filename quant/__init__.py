"""The workbench half, from checkpoints to smaller checkpoints: weight formats, quantization methods, sparsity."""
