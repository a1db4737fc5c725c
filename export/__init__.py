"""The workbench half, from checkpoints to bundles: reads a checkpoint, builds its graphs, writes the bundle."""
