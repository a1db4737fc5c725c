"""Recipes: which weight format and which method each stage gets, and those that come with the package."""
