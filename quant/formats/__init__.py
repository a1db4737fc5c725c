"""Weight formats: what a number on disk means."""
