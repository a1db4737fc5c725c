"""Results of `edgeblt validate`, `bench` and `tune` as one HTML page."""
