"""Networks that several checkpoints have in common are held once, so that their works share forwards and caches."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sd_core.pipeline.model import StableDiffusion, StandaloneVAE

Held = Mapping[str, nn.Module]
"""Networks by their keys."""


def sharing(loaded: StableDiffusion | StandaloneVAE, held: Held) -> StableDiffusion | StandaloneVAE:
    """The same with networks that are held, under their keys, in the place of its own that have equal weights."""
    if isinstance(loaded, StandaloneVAE):
        network, key = _shared(loaded.network, loaded.key, held)
        return replace(loaded, network=network, key=key)
    networks, keys = dict[str, Any](), dict[str, str]()
    for role, key in vars(loaded.keys).items():
        networks[role], keys[role] = _shared(getattr(loaded.networks, role), key, held)
    return replace(loaded, networks=replace(loaded.networks, **networks), keys=replace(loaded.keys, **keys))


def _shared(network: Any, key: str, held: Held) -> tuple[Any, str]:
    return next(((other, name) for name, other in held.items() if is_same(network, other)), (network, key))


def is_same(one: Any, other: Any) -> bool:
    """Whether two networks have the same configuration and, number for number, the same weights."""
    if one is other:
        return True
    if type(one) is not type(other) or one.config != other.config:
        return False
    theirs = other.state_dict()
    own: dict[str, Tensor] = one.state_dict()
    # Most networks differ in their first tensor, so that little is read.
    return own.keys() == theirs.keys() and all(_is_equal(weight, theirs[name]) for name, weight in own.items())


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype.itemsize == 1:  # torch does not compare floats of eight bits
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    return torch.equal(one, other)
