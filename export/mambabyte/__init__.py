"""MambaByte on the workbench: its checkpoints, its graph, its reference."""
