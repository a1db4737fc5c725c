"""Quantization with a calibration text, layer by layer."""
