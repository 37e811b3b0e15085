"""A pure-PyTorch core for Stable Diffusion v1.x: models, samplers, pipeline and engine."""
