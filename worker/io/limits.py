"""How large a sent image may be: in bytes as a file, in pixels once decoded."""

from sd_core.errors import InvalidImage

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 50_000_000  # of width x height, as the file's header states them


def check_pixels(width: int, height: int) -> None:
    """Raise `InvalidImage` if an image of this size has too many pixels to be decoded."""
    if width * height > MAX_PIXELS:
        raise InvalidImage(f"image: {width} x {height} is {width * height:,} pixels, over the limit of {MAX_PIXELS:,}")
