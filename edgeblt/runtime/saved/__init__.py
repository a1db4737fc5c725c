"""States that outlive their session: in a file, or in memory for texts that begin alike."""
