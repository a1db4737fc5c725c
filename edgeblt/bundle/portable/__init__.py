"""A portable graph: its contract, and the document that describes it to clients."""
