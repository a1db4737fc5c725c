"""Sequences on a portable graph, which computes all stages in one run and gives its state back."""
