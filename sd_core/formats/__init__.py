"""Checkpoint files: reading them, recognizing them, and building networks from them."""
