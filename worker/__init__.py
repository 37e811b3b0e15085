"""Serving: what a request is, where pictures come from and go to. Nothing here computes a picture."""

VERSION = "0.1.0"
