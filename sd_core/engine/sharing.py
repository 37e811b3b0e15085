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
        same = _same(loaded.network, held)
        return loaded if same is None else replace(loaded, key=same[0], network=same[1])
    for role in vars(loaded.keys):
        same = _same(getattr(loaded.networks, role), held)
        if same is not None:
            keys, networks = replace(loaded.keys, **{role: same[0]}), replace(loaded.networks, **{role: same[1]})
            loaded = replace(loaded, keys=keys, networks=networks)
    return loaded


def _same(network: Any, held: Held) -> tuple[str, Any] | None:
    return next(((key, other) for key, other in held.items() if is_same(network, other)), None)


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
