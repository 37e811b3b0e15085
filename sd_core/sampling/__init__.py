"""Noise levels, noise, and the samplers that step through them."""
