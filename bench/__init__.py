"""Measurements of the core and the worker, beside diffusers on the same weights."""
