"""Sequences on models of one stage: what their sessions share, whatever the state is."""
