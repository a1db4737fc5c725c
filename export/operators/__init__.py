"""Operators of the domain `edgeblt` as functions of standard ones."""
