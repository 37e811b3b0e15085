"""The text in an image file that says how it was generated, written by Pillow, by this worker, and by hand."""

import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_core.errors import InvalidImage
from tests.support.image_files import chunk, png_of
from tests.support.pictures import file_of
from worker.io.exif import user_comment_of, with_user_comment
from worker.io.metadata import generation_text

TEXT = "a cat, лес 🐈\nSteps: 20, Sampler: Euler"
PLAIN = Image.new("RGB", (8, 8), "red")


def png_with(*texts: tuple[str, str], zipped: bool = False) -> bytes:
    chunks = PngInfo()
    for keyword, text in texts:
        chunks.add_text(keyword, text, zip=zipped)
    return file_of(PLAIN, "PNG", pnginfo=chunks)


def exif_block(entries: list[tuple[int, int, int, bytes]], order: str = "<", start: int = 8) -> bytes:
    """A TIFF block with one directory of these entries (tag, kind, count, 4 bytes of value)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(order + "H", len(entries)) + body + bytes(4)


def comment_block(comment: bytes, order: str) -> bytes:
    """A TIFF block in this byte order with this UserComment."""
    first = exif_block([(0x8769, 4, 1, struct.pack(order + "I", 26))], order)
    entry = struct.pack(order + "HHHII", 1, 0x9286, 7, len(comment), 44) + bytes(4)
    return first + entry + comment


@pytest.mark.parametrize("text", [TEXT, "plain ascii, only: 1"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pngs_text(text: str, zipped: bool) -> None:
    assert generation_text(png_with(("parameters", text), zipped=zipped)) == text


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_the_user_comment_of_jpeg_and_webp(file_format: str) -> None:
    assert generation_text(file_of(PLAIN, file_format, exif=with_user_comment(TEXT))) == TEXT


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_pillow_reads_the_comment_as_it_was_written(file_format: str) -> None:
    file = file_of(PLAIN, file_format, exif=with_user_comment(TEXT))
    assert generation_text(file) == TEXT
    exif = Image.Exif()
    exif.load(with_user_comment(TEXT))
    assert exif.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + TEXT.encode("utf-16-be")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "comment",
    [b"UNICODE\0" + TEXT.encode("utf-16-be"), b"UNICODE\0" + TEXT.encode("utf-16-le"), b"ASCII\0\0\0" + TEXT.encode(),
     bytes(8) + TEXT.encode()],
    ids=["big", "little", "ascii", "undefined"],
)  # fmt: skip
def test_a_comment_in_any_byte_order_and_encoding(order: str, comment: bytes) -> None:
    assert user_comment_of(comment_block(comment, order)) == TEXT
    assert generation_text(file_of(PLAIN, "JPEG", exif=b"Exif\0\0" + comment_block(comment, order))) == TEXT


def test_comfyuis_graph_in_png_and_webp() -> None:
    graph = '{"3": {"class_type": "KSampler"}}'
    assert generation_text(png_with(("workflow", "{}"), ("prompt", graph))) == graph
    assert generation_text(png_with(("prompt", graph), ("parameters", TEXT))) == TEXT
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{graph}", "workflow:{}"
    assert generation_text(file_of(PLAIN, "WEBP", exif=exif.tobytes())) == graph


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (file_of(PLAIN), "carries no text"),
        (file_of(PLAIN, "JPEG"), "carries no text"),
        (file_of(PLAIN, "WEBP"), "carries no text"),
        (png_with(("Comment", "x")), "carries no text"),
        (file_of(PLAIN, "GIF"), "are not a PNG, JPEG or WebP image"),
        (b"RIFF\x04\0\0\0WAVE", "carries no text"),
        (b"", "0 bytes are not"),
        (png_of(8, 8, before=chunk(b"tEXt", b"parameters\0x", checksum=1)), "carries no text"),
        (png_of(8, 8, before=chunk(b"zTXt", b"parameters\0\0broken")), "carries no text"),
    ],
)
def test_a_file_without_a_text_is_refused(file: bytes, reason: str) -> None:
    with pytest.raises(InvalidImage, match=f"^parameters: .*{reason}"):
        generation_text(file)


def test_a_text_that_expands_beyond_the_limit_is_cut() -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20).replace(b"\0", b"x")) for _ in range(8)) + packer.flush()
    text = generation_text(png_of(8, 8, before=chunk(b"zTXt", b"parameters\0\0" + packed)))
    assert len(text) == 1 << 20


def test_a_directory_that_points_to_itself_ends() -> None:
    block = exif_block([(0x8769, 4, 1, struct.pack("<I", 8))] * 3)
    assert user_comment_of(block) is None
    assert user_comment_of(exif_block([(0x8769, 4, 1, struct.pack("<I", 2**32 - 1))])) is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: Any) -> None:
    whole = data.draw(
        st.sampled_from([
            png_with(("parameters", TEXT)), file_of(PLAIN, "JPEG", exif=with_user_comment(TEXT)),
            file_of(PLAIN, "WEBP", exif=with_user_comment(TEXT)),
        ])
    )  # fmt: skip
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidImage):
        assert generation_text(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(block=st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"II*\0\x08\0\0\0" + tail))
def test_any_exif_block_is_read(block: bytes) -> None:
    user_comment_of(block)
