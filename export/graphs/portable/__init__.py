"""The portable graph of a model: the four stages connected, and its weights."""
