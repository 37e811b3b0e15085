"""Canny's edge detector, equal to OpenCV's with its default aperture of 3 and L1 norm."""

import numpy as np

# A gradient's direction is compared with the tangents of 22.5 and 67.5 degrees as fixed-point numbers.
SHIFT = 15
TAN_22 = int(0.4142135623730950488016887242097 * (1 << SHIFT) + 0.5)

NEIGHBOURS = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])


def canny(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges, uint8 (H, W), 255 on one and 0 elsewhere, of an image uint8 (H, W) or (H, W, C).

    A pixel is an edge if its gradient is the largest across the edge and is over `high`, or is over `low` and is
    connected to such a pixel. Of several channels, the one with the largest gradient counts.

    Source: Canny 1986, "A Computational Approach to Edge Detection", with the conventions of OpenCV's `Canny`.
    """
    low, high = sorted((int(np.floor(low)), int(np.floor(high))))
    dx, dy = _gradient(image if image.ndim == 3 else image[..., None])
    magnitude = np.abs(dx) + np.abs(dy)
    weak = (magnitude > low) & _is_largest(magnitude, dx, dy)
    return _connected(weak, weak & (magnitude > high)).astype(np.uint8) * 255


def _gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's derivatives in x and y, int32 (H, W) each, of the channel in which they are largest at a pixel."""
    x = np.pad(image.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = x[:-2] + 2 * x[1:-1] + x[2:]
    across = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    dx, dy = down[:, 2:] - down[:, :-2], across[2:] - across[:-2]
    channel = (np.abs(dx) + np.abs(dy)).argmax(axis=2)[..., None]
    return np.take_along_axis(dx, channel, 2)[..., 0], np.take_along_axis(dy, channel, 2)[..., 0]


def _is_largest(magnitude: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Whether the magnitude (H, W) is larger than those of the two neighbours in the gradient's direction."""
    around = np.pad(magnitude, 1)
    height, width = magnitude.shape

    def at(rows: int, columns: int) -> np.ndarray:
        return around[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    x, y = np.abs(dx).astype(np.int64), np.abs(dy).astype(np.int64) << SHIFT
    is_flat = y < x * TAN_22
    is_steep = y > x * TAN_22 + (x << (SHIFT + 1))
    falls = (dx ^ dy) < 0
    flat = (magnitude > at(0, -1)) & (magnitude >= at(0, 1))
    steep = (magnitude > at(-1, 0)) & (magnitude >= at(1, 0))
    rising = (magnitude > at(-1, -1)) & (magnitude > at(1, 1))
    falling = (magnitude > at(-1, 1)) & (magnitude > at(1, -1))
    result: np.ndarray = np.where(is_flat, flat, np.where(is_steep, steep, np.where(falls, falling, rising)))
    return result


def _connected(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """The pixels (H, W) of `weak` that are connected to one of `strong`, over eight neighbours."""
    left = np.pad(weak, 1)
    width = left.shape[1]
    steps = NEIGHBOURS @ (width, 1)
    left, found = left.ravel(), np.zeros(left.size, bool)
    front = np.flatnonzero(np.pad(strong, 1).ravel())
    while front.size:
        found[front], left[front] = True, False
        near = (front[:, None] + steps).ravel()
        front = np.unique(near[left[near]])
    return found.reshape(-1, width)[1:-1, 1:-1]
