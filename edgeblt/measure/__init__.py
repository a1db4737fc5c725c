"""Accuracy, speed and tuning of a bundle."""
