"""Random v1.x checkpoints of any size, scaled so that a wrong constant in a network changes the output noticeably.

With a framework's default initialization, activations are large and a block adds little to them, so the effect of a
wrong normalization eps or activation is smaller than an image's rounding. Here the residual streams have a standard
deviation of about FAINT, so that an eps of 1e-5 or 1e-6 matters beside their variance; every block adds as much as it
receives; and the networks' outputs have unit size, like those of a trained model.
"""

import math
import re
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.formats.check import expected_shapes
from sd_core.formats.detect import NATIVE_SIZE_KEY, Architecture
from sd_core.models.clip import CLIPConfig
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig

# Standard deviation of what a block adds to its residual stream.
FAINT = 0.01

# Stable Diffusion v1.5.
FULL = Architecture(CLIPConfig(), UNetConfig(), VAEConfig())

# v1.5's layout at a small size that generates quickly; its vocabulary is that of a tokenizer without merges.
TINY = Architecture(
    CLIPConfig(vocab_size=514, width=128, layers=3, heads=2, mlp_width=256),
    UNetConfig(channels=(32, 64, 64, 96), context_dim=128),
    VAEConfig(channels=(32, 32, 64, 64)),
    native_size=64,
)

# The fastest network that is still a v1.x model, for tests of the code around it.
SMALLEST = Architecture(
    CLIPConfig(vocab_size=514, width=64, layers=1, heads=1, mlp_width=64),
    UNetConfig(channels=(32, 32, 32, 32), num_res_blocks=1, attention_levels=(2,), context_dim=64),
    VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1),
    native_size=64,
)

# The first pattern found in a weight's name gives the standard deviation of the layer's output for input of unit size,
# 1 if none is found. Layers that add to a residual stream add FAINT values; layers that pass it on keep its size, and
# only their bias is FAINT.
_GAINS = (
    (r"token_embedding|position_embedding", FAINT),
    (r"self_attn\.out_proj|mlp\.fc2", FAINT),
    (r"diffusion_model\.input_blocks\.0\.0\.|in_layers\.2|out_layers\.3|emb_layers\.1", FAINT),
    (r"\.1\.proj_in|attn[12]\.to_out|ff\.net\.2", FAINT),
    (r"attn[12]\.to_[qk]|attn_1\.[qk]\.", 1.5),  # so that attention is not nearly uniform
    (r"time_embed", 1.5),
    (r"input_hint_block\.14", FAINT),
    (r"input_hint_block", 1.7),  # as below
    (r"diffusion_model\.out\.2", 1.7),  # behind a SiLU, whose output is smaller than its input
    (r"coder\.conv_in|\.conv1\.|\.conv2\.|attn_1\.proj_out", FAINT),
    (r"post_quant_conv", VAEConfig.scale_factor),  # its input are unscaled latents, its output has unit size
    (r"decoder\.conv_out", 0.6),  # images that rarely exceed [-1, 1]
)
_CARRIERS = r"skip_connection|nin_shortcut|\.1\.proj_out|\.op\.|\.\d\.conv\.|sample\.conv\."


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The float32 tensor of this checkpoint name; it depends on name, shape and seed only."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
    values = torch.randn(shape, generator=generator)
    gain = next((gain for pattern, gain in _GAINS if re.search(pattern, name)), 1.0)
    if "embedding" in name:
        return values.mul_(gain)
    if name.endswith(".bias"):
        return values.mul_(0.1 * (FAINT if re.search(_CARRIERS, name) else gain))
    if len(shape) == 1:  # the scale of a normalization
        return values.mul_(0.1).add_(1.0)
    return values.mul_(gain / math.sqrt(math.prod(shape[1:])))


def random_state_dict(architecture: Architecture, prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of a checkpoint whose name begins with `prefix`, float32, under the checkpoint's own names."""
    shapes = expected_shapes(architecture)
    return {name: random_tensor(name, shape, seed) for name, shape in shapes.items() if name.startswith(prefix)}


def write_checkpoint(path: Path, architecture: Architecture, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
    """A random checkpoint as a safetensors file."""
    tensors = {name: tensor.to(dtype) for name, tensor in random_state_dict(architecture, seed=seed).items()}
    save_file(tensors, path, metadata={NATIVE_SIZE_KEY: str(architecture.native_size)})
