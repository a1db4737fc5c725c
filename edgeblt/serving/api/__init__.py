"""The protocol: what requests ask for, and what answers say."""
