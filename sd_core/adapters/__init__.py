"""Adapters (LoRA and its relatives): what a file adds to the layers of a UNet and of a text encoder."""
