"""The text in an image file that says how the image was generated. No pixel is decoded for it.

AUTOMATIC1111's web UI and this worker write it as a PNG's text `parameters`, or as the EXIF UserComment of JPEG and
WebP; ComfyUI as a PNG's text `prompt`, or in a WebP's EXIF.
"""

from sd_core.errors import InvalidImage
from worker.io import jpeg, png, webp
from worker.io.exif import ascii_texts_of, user_comment_of

PNG_KEYWORDS = ("parameters", "prompt")
GRAPH = "prompt:"  # before ComfyUI's graph in a WebP
EXIF_READERS = {png.SIGNATURE: png.exif_of, b"\xff\xd8\xff": jpeg.exif_of, webp.SIGNATURE: webp.exif_of}


def generation_text(data: bytes) -> str:
    """The text of a PNG, JPEG or WebP file. Raises `InvalidImage` if it is another file or has none."""
    exif_of = next((reader for signature, reader in EXIF_READERS.items() if data.startswith(signature)), None)
    if exif_of is None:
        raise InvalidImage(f"parameters: {len(data):,} bytes are not a PNG, JPEG or WebP image")
    if data.startswith(png.SIGNATURE):
        texts = png.texts_of(data)
        for keyword in PNG_KEYWORDS:
            if texts.get(keyword):
                return texts[keyword]
    exif = exif_of(data)
    text = user_comment_of(exif) or next(
        (text.removeprefix(GRAPH) for text in ascii_texts_of(exif) if text.startswith(GRAPH)), ""
    )
    if not text:
        raise InvalidImage("parameters: the image carries no text that says how it was generated")
    return text
