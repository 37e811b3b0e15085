"""Offline tools: a published checkpoint -> the safetensors that the worker loads."""

# Must change if the same source and options would be written differently.
VERSION = "1"
