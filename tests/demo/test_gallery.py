"""The gallery's page shows exactly the images that its script generates."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from demo.gallery import FIGURES, OUT, sheet


def test_the_page_shows_every_image_once() -> None:
    page = (OUT.parent / "gallery.md").read_text()
    names = [f"gallery/{figure.__name__}.png" for figure in FIGURES]
    assert re.findall(r"\]\((gallery/[^)]*)\)", page) == names
    assert sorted(path.name for path in OUT.iterdir()) == sorted(Path(name).name for name in names)


def test_a_sheet_has_its_images_in_rows() -> None:
    red, blue = (np.full((8, 6, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    drawn: Image.Image = sheet([[red, blue], [blue, red], [red, red]])
    assert drawn.size == (2 * 6 + 4, 3 * 8 + 2 * 4)
    assert drawn.getpixel((0, 0)) == drawn.getpixel((15, 12)) == (255, 0, 0)
    assert drawn.getpixel((15, 0)) == drawn.getpixel((0, 12)) == (0, 0, 255)
    assert drawn.getpixel((7, 9)) == (255, 255, 255)
