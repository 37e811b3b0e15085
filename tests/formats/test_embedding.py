"""Textual inversions in every layout that is in use, and what is not one."""

import base64
import hashlib
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.embedding import bundled_embeddings, load_embedding
from sd_core.formats.files import open_safetensors

VECTORS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


def a1111(params: Any) -> dict[str, Any]:
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": params,
        "name": "another name",
        "step": 1_500,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": None,
    }


PICKLED: dict[str, tuple[Any, Tensor, tuple[str, ...]]] = {
    "a1111": (a1111({"*": VECTORS}), VECTORS, ()),
    "a1111, a parameter": (a1111({"*": torch.nn.Parameter(VECTORS)}), VECTORS, ()),
    "a1111, half": (a1111({"*": VECTORS.half()}), VECTORS.half().float(), ()),
    "the original": (a1111(torch.nn.ParameterDict({"*": VECTORS})), VECTORS, ()),
    "diffusers": ({"<cat-toy>": VECTORS}, VECTORS, ("<cat-toy>",)),
    "diffusers, one vector": ({"<cat-toy>": VECTORS[0]}, VECTORS[:1], ("<cat-toy>",)),
    "SDXL": ({"clip_l": VECTORS, "clip_g": torch.zeros(3, 12)}, VECTORS, ()),
    "list": ([{"a": VECTORS}, OrderedDict(b=OTHER, c=OTHER[0])], torch.cat([VECTORS, OTHER, OTHER[:1]]), ()),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", PICKLED)
@pytest.mark.parametrize("suffix", ["pt", "bin"])
def test_pickled_layouts(tmp_path: Path, layout: str, zipped: bool, suffix: str) -> None:
    value, vectors, names = PICKLED[layout]
    path = tmp_path / f"my style.{suffix}"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    embedding = load_embedding(path)
    assert embedding.names == ("my style", *names)
    assert embedding.vectors.dtype == torch.float32
    assert torch.equal(embedding.vectors, vectors)
    assert embedding.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


SAFE: dict[str, tuple[dict[str, Tensor], Tensor, tuple[str, ...]]] = {
    "kohya": ({"emb_params": VECTORS}, VECTORS, ()),
    "diffusers": ({"<cat-toy>": VECTORS[0]}, VECTORS[:1], ("<cat-toy>",)),
    "SDXL": ({"clip_g": torch.zeros(3, 12), "clip_l": VECTORS}, VECTORS, ()),
    "a1111": ({"string_to_param.*": VECTORS.bfloat16()}, VECTORS.bfloat16().float(), ()),
}


@pytest.mark.parametrize("layout", SAFE)
def test_safetensors_layouts(tmp_path: Path, layout: str) -> None:
    tensors, vectors, names = SAFE[layout]
    path = tmp_path / "style.safetensors"
    save_file({name: each.clone() for name, each in tensors.items()}, path)
    embedding = load_embedding(path)
    assert embedding.names == ("style", *names)
    assert torch.equal(embedding.vectors, vectors)


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    save_file({"emb_params": VECTORS}, path)
    assert torch.equal(load_embedding(path).vectors, VECTORS)


def test_tokens_are_equal_if_their_files_are(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, vectors in zip(paths, (VECTORS, VECTORS, VECTORS + 1), strict=True):
        save_file({"emb_params": vectors}, path)
    one, two, three = (load_embedding(path).tokens for path in paths)
    assert one == two != three
    assert len(set(one)) == 3
    assert torch.equal(one[1].values, VECTORS[1])


def test_a_lora_may_bring_embeddings(saved: Callable[..., Path]) -> None:
    path = saved(
        {
            "bundle_emb.my.style.string_to_param.*": VECTORS,
            "bundle_emb.other.clip_l": OTHER.half(),
            "lora_unet_x.lora_up.weight": torch.zeros(4, 4),
        }
    )
    with open_safetensors(path) as file:
        mine, other = sorted(bundled_embeddings(file), key=lambda each: each.names)
    assert (mine.names, other.names) == (("my.style",), ("other",))
    assert torch.equal(mine.vectors, VECTORS) and torch.equal(other.vectors, OTHER.half().float())
    assert mine.tokens[0] != other.tokens[0]


def test_most_loras_bring_none(saved: Callable[..., Path]) -> None:
    with open_safetensors(saved({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)})) as file:
        assert bundled_embeddings(file) == []


DATA = {"string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}, "string_to_token": {"*": 265}, "name": "my style"}


def picture_with_text(data: Any) -> Image.Image:
    picture = Image.new("RGB", (8, 8), "red")
    picture.info["sd-ti-embedding"] = base64.b64encode(json.dumps(data).encode()).decode()
    return picture


def picture_with_borders(data: bytes) -> Image.Image:
    """As the web UI lays it out: low bits at the left, high bits at the right, hidden by its random numbers."""
    rows = 32
    padded = np.resize(
        np.frombuffer(zlib.compress(data), np.uint8), -(-len(zlib.compress(data)) // (3 * rows)) * 3 * rows
    )
    state, hidden = 0, []
    for _ in padded:
        state = (1_664_525 * state + 1_013_904_223) % 2**32
        hidden.append(state % 255 & 15)
    low, high = ((half ^ np.array(hidden, np.uint8) | 0x40).reshape(rows, -1, 3) for half in (padded & 15, padded >> 4))
    black, middle = np.zeros((rows, 1, 3), np.uint8), np.full((rows, 9, 3), 0x35, np.uint8)
    framed = np.concatenate([low, black, middle, black, high], axis=1)
    return Image.fromarray(np.pad(framed, ((2, 3), (4, 1), (0, 0))))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_picture_may_hold_an_embedding_in_its_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"style.{suffix}"
    picture_with_borders(json.dumps(DATA).encode()).save(path, lossless=True)
    embedding = load_embedding(path)
    assert embedding.names == ("style", "my style")
    assert torch.equal(embedding.vectors, VECTORS)


def test_a_png_may_hold_an_embedding_as_text(tmp_path: Path) -> None:
    path = tmp_path / "style.png"
    picture = picture_with_text(DATA)
    text = PngInfo()
    text.add_text("sd-ti-embedding", picture.info["sd-ti-embedding"])
    picture.save(path, pnginfo=text)
    embedding = load_embedding(path)
    assert embedding.names == ("style", "my style")
    assert torch.equal(embedding.vectors, VECTORS)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (8, 8), "black"),
        Image.new("RGB", (8, 8), "red"),
        picture_with_borders(b"[]"),
        picture_with_borders(b"[" * 100_000),
        picture_with_borders(b'{"string_to_param": {}}'),
        picture_with_borders(b'{"string_to_param": {"*": {"TORCHTENSOR": [[1], [1, 2]]}}}'),
        picture_with_borders(b'{"string_to_param": {"*": {"TORCHTENSOR": "x"}}}'),
        picture_with_borders(b" " * (2**25 + 1)),
    ],
    ids=range(8),
)
def test_other_pictures_are_refused_by_name(tmp_path: Path, picture: Image.Image) -> None:
    path = tmp_path / "style.png"
    picture.save(path)
    with pytest.raises(ModelError, match="is a picture without a readable embedding") as refused:
        load_embedding(path)
    assert str(refused.value).startswith(str(path))


def test_a_large_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "style.png"
    Image.new("1", (2**13, 2**12)).save(path)
    with pytest.raises(ModelError, match="has 8192 x 4096 pixels"):
        load_embedding(path)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": VECTORS, "b": OTHER}, "is not an embedding for this family of models; its tensors are a, b"),
        ({"clip_g": torch.zeros(3, 12)}, "is not an embedding for this family"),
        (a1111({"*": VECTORS, "+": OTHER}), "is not an embedding for this family"),
        ({"<x>": torch.zeros(2, 2, 8)}, r"<x> of torch.float32 \[2, 2, 8\] is not vectors"),
        ({"<x>": torch.zeros(0, 8)}, "is not vectors"),
        ({"<x>": torch.tensor(1.0)}, "is not vectors"),
        ({"<x>": torch.zeros(2, 8, dtype=torch.int64)}, "is not vectors"),
        ({"<x>": torch.tensor([[1.0, float("nan")]])}, "holds infinities or not-a-numbers"),
        ({"<x>": torch.tensor([[1.0, float("inf")]])}, "holds infinities or not-a-numbers"),
        ([1, 2], "holds no tensors"),
        ({}, "holds no tensors"),
        (VECTORS, "holds no dictionary of tensors"),
    ],
    ids=str,
)
def test_what_is_not_an_embedding_is_refused_by_file(ckpt: Callable[..., Path], value: Any, says: str) -> None:
    path = ckpt(value)
    with pytest.raises(ModelError, match=says) as refused:
        load_embedding(path)
    assert str(refused.value).startswith(str(path))


class Command:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_nothing_in_a_file_is_run(ckpt: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="refused"):
        load_embedding(ckpt(a1111({"*": Command()})))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK", b"\x80\x02."], ids=["empty", "page", "zip", "pickle"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError) as refused:
        load_embedding(path)
    assert str(path) in str(refused.value)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2**24 + 1)}, path)
    with pytest.raises(ModelError, match=r"has 67,\d+,\d+ bytes: it is not an embedding"):
        load_embedding(path)
