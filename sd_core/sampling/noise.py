"""Noise that belongs to one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sd_core.device import upload
from sd_core.sampling.ahead import Ahead
from sd_core.sampling.brownian import BrownianTree
from sd_core.sampling.philox import philox_normal
from sd_core.sampling.schedule import v1_schedule

SEEDS = 2**63  # beyond which they wrap
ALIKE = 0.9995  # mean cosine above which two noises are not mixed along an arc

Interval = tuple[float, float]
"""Two noise levels, in the order in which a sampler visits them."""


class NoiseSource(Protocol):
    """One image's normal noise of variance 1, float32; its shape is that of the latents, (1, 4, h, w).

    An image draws in this order: the posterior of the image that it starts from, the initial noise, the posterior of
    its masked image, then its sampler's numbers.
    """

    def posterior(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """The noise of a sample of the VAE's posterior, of another shape if one is given."""
        ...

    def initial(self) -> Tensor:
        """The noise that sampling starts from."""
        ...

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """A sampler's next random numbers, of another shape if one is given."""
        ...

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The noise of a Brownian path from sigma to sigma_next, over the square root of their distance.

        The same interval has the same noise, and overlapping intervals have what they share in common.
        """
        ...

    def ahead(self, intervals: Sequence[Interval]) -> Ahead | None:
        """What makes the sampler's noise before it is asked for; None if making it takes no time worth saving.

        `intervals` are those that `between` will be asked for, in this order.
        """
        ...


class Numbers(Protocol):
    """A sequence of normal random numbers, float32, on the CPU."""

    def normal(self, shape: tuple[int, ...]) -> Tensor: ...


class TorchNumbers:
    """The numbers of torch's CPU generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class PhiloxNumbers:
    """The numbers that an NVIDIA GPU's generator draws."""

    def __init__(self, seed: int) -> None:
        self._seed, self._draws = seed, 0

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        drawn = philox_normal(self._seed, self._draws, torch.Size(shape).numel())
        self._draws += 1
        return torch.from_numpy(drawn).reshape(shape)


@dataclass(frozen=True)
class Seeding:
    """Which random numbers an image's seed stands for.

    `rng` is "cpu" or "nv". With a `variation_strength` above 0, the initial noise lies between that of the seed and
    that of `variation_seed`. `sampler_delta` is added to the seed for the sampler's numbers.
    """

    rng: str = "cpu"
    variation_seed: int = 0
    variation_strength: float = 0.0
    sampler_delta: int = 0

    def numbers(self, seed: int) -> Numbers:
        return PhiloxNumbers(seed) if self.rng == "nv" else TorchNumbers(seed)


class CPUNoise:
    """Noise made on the CPU: a seed gives the same noise on any device, alone and in a batch.

    `span` holds the lowest and the highest level of the whole schedule, between which the Brownian path is drawn.
    """

    def __init__(
        self,
        seed: int,
        shape: tuple[int, ...],
        device: torch.device,
        seeding: Seeding = Seeding(),
        span: Interval | None = None,
    ) -> None:
        self._seed, self._shape, self._seeding, self._span = seed, shape, seeding, span
        self.device = device
        self._picture = seeding.numbers(seed)
        # An NVIDIA GPU's first numbers are the initial noise, so the posterior has others there.
        self._posterior = TorchNumbers(seed) if seeding.rng == "nv" else self._picture
        delta = seeding.sampler_delta
        self._sampler = seeding.numbers((seed + delta) % SEEDS) if delta else self._picture
        self._draws = Ahead(self._all_draws(), started=False)
        self._tree: BrownianTree | None = None
        self._expected: list[Interval] = []  # intervals whose noise is made ahead, next one last
        self._path: Ahead | None = None

    def posterior(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return upload(self._posterior.normal(shape or self._shape), self.device)

    def initial(self) -> Tensor:
        """The first numbers of the seed, or a mixture with those of the variation seed, as AUTOMATIC1111 mixes them."""
        noise, strength = self._picture.normal(self._shape), self._seeding.variation_strength
        if strength > 0:
            other = self._seeding.numbers(self._seeding.variation_seed).normal(self._shape)
            noise = slerp(noise, other, strength)
        return upload(noise, self.device)

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        if shape is None or shape == self._shape:
            return upload(self._draws.take(), self.device)
        return upload(self._sampler.normal(shape), self.device)

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        if self._path is not None and self._expected and self._expected[-1] == (sigma, sigma_next):
            self._expected.pop()
            return upload(self._path.take(), self.device)
        return upload(self._brownian().noise(sigma, sigma_next), self.device)

    def ahead(self, intervals: Sequence[Interval]) -> Ahead | None:
        if intervals:
            self._expected = list(reversed(intervals))
            self._path = Ahead(self._along(tuple(intervals)), started=True)
            return self._path
        return self._draws if self._seeding.rng == "nv" else None

    def _all_draws(self) -> Iterator[Tensor]:
        while True:
            yield self._sampler.normal(self._shape)

    def _along(self, intervals: Sequence[Interval]) -> Iterator[Tensor]:
        for sigma, sigma_next in intervals:
            yield self._brownian().noise(sigma, sigma_next)

    def _brownian(self) -> BrownianTree:
        if self._tree is None:
            trained = v1_schedule().sigmas
            low, high = self._span or (trained[0], trained[-1])
            self._tree = BrownianTree(self._seed, _float32(low), _float32(high), self._shape)
        return self._tree


def slerp(low: Tensor, high: Tensor, share: float) -> Tensor:
    """From `low` to `high`, both (1, 4, h, w), by a share of the arc between them: AUTOMATIC1111's variations.

    There, the lengths and angles are those of columns, (h,) each. Noises that are almost equal are mixed linearly, and
    the wrong way around, as there too.
    """
    cosine = ((low / low.norm(dim=2, keepdim=True)) * (high / high.norm(dim=2, keepdim=True))).sum(2, keepdim=True)
    if cosine.mean() > ALIKE:
        return low * share + high * (1 - share)
    angle = torch.acos(cosine)
    return (torch.sin((1 - share) * angle) * low + torch.sin(share * angle) * high) / torch.sin(angle)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
