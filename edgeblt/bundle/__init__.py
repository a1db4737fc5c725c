"""A bundle on disk, and the contract between its graphs and the runtime."""
