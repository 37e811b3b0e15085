"""Offline tools: a checkpoint as it was published -> the safetensors that the worker loads."""

VERSION = "1"
"""Changes when the same source and options would be written differently."""
