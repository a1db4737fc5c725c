"""Steps over several sequences of one model: each takes the next ids of some of them."""
