"""Search over recipes and settings on Optuna: `edgeblt sweep`."""
