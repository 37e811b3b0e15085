"""Networks that several checkpoints have in common are held once, so that their works share forwards and caches."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sd_core.pipeline.model import StableDiffusion

ROLES = ("text_encoder", "unet", "vae")


def sharing(model: StableDiffusion, others: Iterable[StableDiffusion]) -> StableDiffusion:
    """The model with the networks of others, under their keys, in the place of its own that have the same weights."""
    others = list(others)
    for role in ROLES:
        own = getattr(model.networks, role)
        for other in others:
            theirs = getattr(other.networks, role)
            if is_same(own, theirs):
                networks = replace(model.networks, **{role: theirs})
                model = replace(model, networks=networks, keys=replace(model.keys, **{role: getattr(other.keys, role)}))
                break
    return model


def is_same(one: Any, other: Any) -> bool:
    """Whether two networks of one role have the same configuration and, number for number, the same weights."""
    if one is other:
        return True
    if type(one) is not type(other) or one.config != other.config:
        return False
    theirs = _weights(other)
    # Most networks differ in their first tensor, so that little is read.
    return all(_is_equal(weight, theirs[name]) for name, weight in _weights(one).items())


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict()


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype.itemsize == 1:  # torch does not compare floats of eight bits
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    return torch.equal(one, other)
