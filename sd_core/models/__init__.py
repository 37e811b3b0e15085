"""The networks of Stable Diffusion v1.x as nn.Modules that carry the checkpoint's own names."""
