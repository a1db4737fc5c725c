"""Quantization with a text at hand, layer by layer."""
