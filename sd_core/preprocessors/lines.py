"""Line drawings by differences of Gaussian blurs; the formulas are those of sd-webui-controlnet's annotators."""

import numpy as np

REACH = 4  # standard deviations that a blur's kernel covers on each side, as OpenCV's for floating-point images


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of an image (H, W, C), float32; beyond its border it is mirrored about its outermost pixels."""
    size = round(2 * REACH * sigma + 1) | 1
    offsets = np.arange(size) - size // 2
    taps = np.exp(-0.5 * np.square(offsets / sigma))
    taps = (taps / taps.sum()).astype(np.float32)
    return _blurred_down(_blurred_down(image.astype(np.float32), taps).swapaxes(0, 1), taps).swapaxes(0, 1)


def scribble_xdog(image: np.ndarray, threshold: float) -> np.ndarray:
    """Strokes, uint8 (H, W), white on black, where an image (H, W, 3) is darker than its surroundings."""
    difference = (gaussian_blur(image, 5.0) - gaussian_blur(image, 0.5)).min(axis=2)
    dog = (255 - difference).clip(0, 255).astype(np.uint8)
    return np.where(2 * (255 - dog.astype(np.float32)) > threshold, np.uint8(255), np.uint8(0))


def lineart_standard(image: np.ndarray) -> np.ndarray:
    """Lines, uint8 (H, W), white on black, of an image (H, W, 3), scaled to their median strength."""
    intensity = (gaussian_blur(image, 6.0) - image.astype(np.float32)).min(axis=2).clip(0, 255)
    strong = intensity[intensity > 8]
    scaled = intensity / max(16.0, float(np.median(strong)) if strong.size else 0.0) * 127
    lines: np.ndarray = scaled.clip(0, 255).astype(np.uint8)
    return lines


def _blurred_down(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Blur each column."""
    reach, height = len(taps) // 2, image.shape[0]
    padded = np.pad(image, ((reach, reach), (0, 0), (0, 0)), mode="reflect" if height > 1 else "edge")
    result = np.zeros_like(image)
    for row, tap in enumerate(taps):
        result += tap * padded[row : row + height]
    return result
