"""The state of a sequence: caches, histories, and the memory they lie in."""
