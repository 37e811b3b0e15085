"""Control images made of ordinary ones, without a network."""
