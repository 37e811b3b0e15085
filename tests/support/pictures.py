"""What the tests of this floor do with pictures."""

import base64
import io

from PIL import Image


def picture_of(encoded: str) -> Image.Image:
    """Base64 of a picture file -> the picture, decoded to its end."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    image.load()
    return image
