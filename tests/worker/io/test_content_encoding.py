import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest

from sd_core.errors import InvalidImage
from worker.io.content_encoding import decode_body

BODY = bytes(range(256)) * 20


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate), ("br", brotli.compress),
]  # fmt: skip


@pytest.mark.parametrize(("name", "compress"), ENCODINGS)
def test_each_encoding_is_undone_within_the_limit(name: str, compress: Callable[[bytes], bytes]) -> None:
    assert decode_body(compress(BODY), name, len(BODY)) == BODY
    assert decode_body(compress(BODY), f" {name.upper()} ,identity", len(BODY)) == BODY
    with pytest.raises(InvalidImage, match="expand to more than the limit of 5,119 bytes"):
        decode_body(compress(BODY), name, len(BODY) - 1)


@pytest.mark.parametrize(("name", "compress"), ENCODINGS)
def test_what_is_cut_or_not_of_the_encoding_is_refused(name: str, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(BODY)
    for data in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], b"\xff" * 50, BODY):
        with pytest.raises(InvalidImage, match=f"not the {name} that their Content-Encoding says"):
            decode_body(data, name, len(BODY))


@pytest.mark.parametrize(("name", "compress"), ENCODINGS)
def test_a_bomb_expands_no_further_than_the_limit(name: str, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(20_000_000))
    tracemalloc.start()
    with pytest.raises(InvalidImage, match="limit of 1,000,000 bytes"):
        decode_body(bomb, name, 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_gzip_may_have_several_members_and_padding() -> None:
    members = gzip.compress(BODY[:99]) + gzip.compress(b"") + gzip.compress(BODY[99:])
    assert decode_body(members, "gzip", len(BODY)) == BODY
    assert decode_body(members + bytes(100), "gzip", len(BODY)) == BODY
    with pytest.raises(InvalidImage, match="expand to more"):
        decode_body(members, "gzip", len(BODY) - 1)
    with pytest.raises(InvalidImage, match="not the gzip"):
        decode_body(gzip.compress(b"") * 100_000, "gzip", len(BODY))


@pytest.mark.parametrize("encoding", ["zstd", "compress", "gzip, gzip", "gzip, br", "x" * 200])
def test_an_encoding_that_is_not_known_is_refused_by_name(encoding: str) -> None:
    with pytest.raises(InvalidImage, match=f"Content-Encoding '{encoding[:40]}' is not supported"):
        decode_body(BODY, encoding, len(BODY))


@pytest.mark.parametrize("encoding", ["", "identity", "Identity", " , "])
def test_no_encoding_leaves_the_body_as_it_is(encoding: str) -> None:
    assert decode_body(BODY, encoding, len(BODY)) == BODY
