"""The image that a job brings: a file's bytes -> uint8 RGB at the size that is generated."""

from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from sd_core.errors import InvalidImage
from worker.io import jpeg, png, tiff, webp
from worker.io.exif import orientation_of, upright
from worker.io.frames import WHITE, Frame, flattened, is_animated, open_image
from worker.io.limits import MAX_PIXELS

READERS = {
    png.SIGNATURE: png.first_frame,
    b"\xff\xd8\xff": jpeg.first_frame,
    webp.SIGNATURE: webp.first_frame,
    b"II*\0": tiff.first_frame,
    b"MM\0*": tiff.first_frame,
    b"II+\0": tiff.first_frame,  # BigTIFF
    b"MM\0+": tiff.first_frame,
}
OTHER_FORMATS = ("GIF", "BMP")  # not all that Pillow knows: some of its readers start other programs
FORMATS = ("PNG", "JPEG", "WEBP", *OTHER_FORMATS, "TIFF")


@dataclass(frozen=True)
class Picture:
    """A decoded image, RGB and upright, and warnings for its sender."""

    image: Image.Image
    warnings: tuple[str, ...] = ()


def decode_picture(data: bytes, ground: int = WHITE) -> Picture:
    """An image file's bytes -> its first frame, upright by its EXIF tag, as RGB.

    Transparency is laid on gray of the level `ground`, white as AUTOMATIC1111 does.
    Metadata that cannot be read is ignored. Raises `InvalidImage`, for too many pixels before decoding them.
    """
    read = next((reader for signature, reader in READERS.items() if data.startswith(signature)), _other_frame)
    try:
        frame = read(data, ground)
        notes = ("image is animated: its first frame was used",) if frame.animated else ()
        return Picture(upright(frame.image, frame.orientation), notes)
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # from open() itself
        raise InvalidImage(f"image: has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(
            f"image: {len(data):,} bytes are not an image of a known format ({', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # a broken file makes Pillow's readers raise nearly anything
        raise InvalidImage(f"image: the image is broken or truncated ({type(error).__name__})") from error


def _other_frame(data: bytes, ground: int) -> Frame:
    image = open_image(data, *OTHER_FORMATS)
    orientation = orientation_of(image.info.get("exif"), image.info.get("xmp"))
    image.load()
    return Frame(flattened(image, ground), orientation, is_animated(image))
