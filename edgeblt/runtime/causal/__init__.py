"""Sequences on models of one stage that attends to the whole text, byte by byte."""
