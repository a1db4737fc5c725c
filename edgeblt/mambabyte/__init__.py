"""MambaByte: a selective state-space model on bytes, whose state has one size however long the text."""
