"""One sequence on ONNX Runtime: stages, caches, sessions, the machine they run on."""
