"""Sequences on models of one stage whose state has one size however long the text."""
