"""The normal random numbers that an NVIDIA GPU draws, on any machine.

torch.randn on a CUDA device uses Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
element i of draw k is the first Box-Muller value of the four words that the key, which is the seed, makes of the
counter (k, 0, i, 0). The values are AUTOMATIC1111's for "RNG: NV", which differ from a GPU's own by the rounding of its
logarithm and sine, at most about 4e-7.
"""

from math import pi

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
SCALE = 2.0**-32
TURN = float(np.float32(2 * pi * SCALE))


def philox_normal(seed: int, draw: int, count: int) -> np.ndarray:
    """`count` float32 numbers: those of torch.randn(count) of the draw with this number, from 0, after the seed."""
    first, second = _words(seed, draw, count)
    radius = np.sqrt(-2 * np.log((first + 0.5) * SCALE))
    return np.asarray(radius * np.sin((second + 0.5) * TURN), np.float32)


def _words(seed: int, draw: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first two of the four words of each element, as float64."""
    # Words of 32 bits, in 64 so that a product keeps its upper half.
    counter = [np.zeros(count, np.uint64) for _ in range(4)]
    counter[0] += np.uint64(draw)
    counter[2] += np.arange(count, dtype=np.uint64)
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(ROUNDS):
        products = [counter[0] * np.uint64(MULTIPLIERS[0]), counter[2] * np.uint64(MULTIPLIERS[1])]
        counter = [
            (products[1] >> HALF) ^ counter[1] ^ np.uint64(key[0]),
            products[1] & WORD,
            (products[0] >> HALF) ^ counter[3] ^ np.uint64(key[1]),
            products[0] & WORD,
        ]
        key = [(word + step) & 0xFFFFFFFF for word, step in zip(key, WEYL, strict=True)]
    return counter[0].astype(np.float64), counter[1].astype(np.float64)
