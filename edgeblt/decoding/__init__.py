"""Choosing the next bytes: sampling and speculation."""
