"""A checkpoint's weights as they lie on disk."""
