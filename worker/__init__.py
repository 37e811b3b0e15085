"""Serving: what a job is, and where images come from and go to. Nothing here computes an image."""
