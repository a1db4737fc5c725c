"""Speed of matrix products on this machine, without a bundle."""
