import base64
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_core.errors import InvalidImage
from worker.io import data_uri
from worker.io.data_uri import decode_base64

DATA = bytes(range(256)) + b"\xfb\xff\xfe\xfd"  # in base64 with + and /
TEXT = base64.b64encode(DATA).decode()
assert "+" in TEXT and "/" in TEXT and TEXT.endswith("=")

HEADERS = [
    "data:image/png;base64,", "DATA:;BASE64,", "data:;base64,", "data:image/png; base64,", "data:image/png;   BASE64,",
    "data:image/png;base64 ,", "data:image/png;name=x.png;charset=utf-8;base64,", "data:image/png;name=%22a%22;Base64,",
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    "payload",
    [
        TEXT, TEXT.rstrip("="), quote(TEXT, safe=""), TEXT.replace("=", "%3D"), TEXT.replace("=", "%3d"),
        TEXT[:9] + "\r\n\t " + TEXT[9:], TEXT[:9] + "%0A%20" + TEXT[9:], "".join(f"%{ord(c):02X}" for c in TEXT),
        TEXT + "#fragment",
    ],
)  # fmt: skip
def test_data_uris_of_base64(header: str, payload: str) -> None:
    assert decode_base64(header + payload) == DATA


@pytest.mark.parametrize("length", [1, 2, 3, 4, 255])
def test_every_length_of_padding_may_be_left_out(length: int) -> None:
    text = base64.b64encode(DATA[:length]).decode()
    for source in (text, text.rstrip("="), f"data:;base64,{text}", f"data:;base64,{text.rstrip('=')}"):
        assert decode_base64(source) == DATA[:length]


def test_data_uris_without_base64_are_percent_encoded_bytes() -> None:
    assert decode_base64(f"data:image/png,{quote_from_bytes(DATA)}") == DATA
    assert decode_base64("data:,a,b%2Cc%zz%") == b"a,b,c%zz%"
    assert decode_base64("data:,é") == "é".encode()
    assert decode_base64("data:xbase64,QUJD") == b"QUJD"


@pytest.mark.parametrize("wrap", ["{}", " {}\n"])
def test_plain_base64(wrap: str) -> None:
    assert decode_base64(wrap.format(TEXT)) == DATA
    assert decode_base64(wrap.format(base64.encodebytes(DATA).decode())) == DATA
    assert decode_base64(wrap.format(base64.urlsafe_b64encode(DATA).decode())) == DATA
    assert decode_base64(wrap.format(base64.urlsafe_b64encode(DATA).decode().rstrip("="))) == DATA


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("not base64!!", "12 characters is not base64"),
        ("aGkxx", "is not base64"),
        ("aG=k", "is not base64"),
        ("aG=", "is not base64"),
        ("aGk==", "is not base64"),
        ("aGk====", "is not base64"),
        ("a-b+", "is not base64"),
        ("héllo", "is not base64"),
        ("aGk%3D", "is not base64"),
        ("data:;base64,a-b_", "is not base64"),
        ("data:;base64,aG=k", "is not base64"),
        ("data:;base64,é", "is not base64"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "holds no bytes"),
        ("data:,", "holds no bytes"),
        ("data:,\ud800", "not valid Unicode"),
        ("\ud800", "is not base64"),
        ("file:///etc/passwd", "begins with http:// or https://, not 'file'"),
        ("   ", "holds no bytes"),
    ],
)
def test_what_is_not_base64_is_refused(source: str, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        decode_base64(source)


def test_an_image_file_of_too_many_bytes_is_refused() -> None:
    assert len(decode_base64(base64.b64encode(bytes(1000)).decode(), max_bytes=1000)) == 1000
    for size in (1001, 5000):
        text = base64.b64encode(bytes(size)).decode()
        for source in (text, f"data:;base64,{text}", f"data:;base64,{quote(text)}", f"data:,{'%00' * size}"):
            with pytest.raises(InvalidImage, match="over the limit of"):
                decode_base64(source, max_bytes=1000)


@given(st.binary(min_size=1, max_size=60), st.integers(4, 20))
def test_blocks_divide_no_escape(data: bytes, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_uri, "BLOCK", block)
        assert decode_base64(f"data:,{quote_from_bytes(data, safe='')}") == data
        everything = "".join(f"%{byte:02x}" for byte in data)
        assert decode_base64(f"data:,{everything}") == data
