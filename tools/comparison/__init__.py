"""Models of other architectures, trained as the demo model is so that they can be compared with it."""
