"""The commands of the command line, a few related ones to a file, and the parts they share."""
