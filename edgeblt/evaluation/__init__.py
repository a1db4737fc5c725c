"""Evaluation on tasks, noise, spelling and length; docs/evaluation.md explains each."""
