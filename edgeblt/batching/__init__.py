"""Many texts at once: a scheduler of steps, and an engine that runs them in a thread."""
