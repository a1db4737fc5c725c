"""The machine a model runs on: its names, cores, memory and energy."""
