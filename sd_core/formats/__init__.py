"""Checkpoint files: what they hold, what they are, and the networks that are made from them."""
