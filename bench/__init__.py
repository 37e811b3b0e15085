"""Measurements of the core beside diffusers, and the random v1.x checkpoints that they and the tests run on."""
