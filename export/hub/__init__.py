"""Checkpoints on the Hugging Face hub."""
