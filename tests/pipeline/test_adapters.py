"""Adapters are read from files of both formats, completely, and without running anything."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.adapters.apply import Adapter
from sd_core.adapters.names import Names
from sd_core.errors import ModelError
from sd_core.formats.unpickle import open_checkpoint
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.pipeline.adapters import describe_adapter, read_adapter
from tests.support.adapter_files import random_lora
from tests.support.checkpoints import marker_call
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict

LAYER = "input_blocks.4.1.proj_in"
NAME = "lora_unet_down_blocks_1_attentions_0_proj_in"
QUERIES = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
LORA_OF_QUERIES = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
SMALL = {f"{NAME}.lora_down.weight": torch.ones(4, 64), f"{NAME}.lora_up.weight": torch.ones(64, 4)}


@pytest.fixture(scope="module")
def pair() -> tuple[CLIPTextEncoder, UNet]:
    text_encoder, unet, _ = tiny_networks(random_state_dict(TINY))
    return text_encoder, unet


@pytest.fixture
def read(pair: tuple[CLIPTextEncoder, UNet]) -> Callable[[Path], Adapter]:
    return lambda path: read_adapter(path, pair[1], pair[0], torch.device("cpu"), torch.float32)


def test_both_formats_hold_the_same_adapter(
    tmp_path: Path, pair: tuple[CLIPTextEncoder, UNet], read: Callable[[Path], Adapter]
) -> None:
    tensors = {name: each.half() for name, each in random_lora(Names.of(pair[1], pair[0]), TINY.unet).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    first, *others = (read(tmp_path / name) for name in ("a.safetensors", "a.pt", "a.ckpt"))
    for other in others:
        assert (other.unet.keys(), other.text.keys()) == (first.unet.keys(), first.text.keys())
        assert all(torch.equal(delta.up, other.unet[name].up) for name, delta in first.unet.items())
    assert all(delta.up.dtype is torch.float32 for delta in (*first.unet.values(), *first.text.values()))
    held = [tensor for delta in (*first.unet.values(), *first.text.values()) for tensor in (delta.down, delta.up)]
    assert sum(each.nbytes for each in held) == 2 * sum(
        each.nbytes for name, each in tensors.items() if not name.endswith("alpha")
    )


def test_the_label_is_the_sha256_of_what_follows_the_header(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(SMALL, path)
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    assert read(path).label == hashlib.sha256(content[start:]).hexdigest()[:12]
    torch.save(SMALL, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").label == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()[:12]


def test_the_same_bytes_under_other_names_are_another_adapter(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    """Here two tensors of one shape have exchanged their places."""
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first, second = (f"{LORA_OF_QUERIES}.lora_{name}.weight" for name in ("down", "up"))
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    save_file({first: values, second: values + 1}, path)
    content = path.read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    swapped = content[:length].replace(b"a_down", b"a_none").replace(b"a_up", b"a_down").replace(b"a_none", b"a_up")
    other.write_bytes(swapped + content[length:])
    one, two = read(path), read(other)
    assert one.label == two.label and one.key != two.key
    assert not torch.equal(one.unet[QUERIES].weight(), two.unet[QUERIES].weight())


def test_nothing_of_the_file_is_needed_afterwards(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(SMALL, path)
    adapter = read(path)
    path.write_bytes(b"")
    assert torch.equal(adapter.unet[LAYER].weight().flatten(1), torch.full((64, 64), 4.0))


def test_embeddings_come_along(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    save_file(SMALL | {"bundle_emb.word.string_to_param.*": torch.ones(2, 128)}, tmp_path / "a.safetensors")
    (embedding,) = read(tmp_path / "a.safetensors").embeddings
    assert embedding.names == ("word",) and embedding.vectors.shape == (2, 128)


def test_pefts_configuration_lies_beside_its_file(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    tensors = {
        f"base_model.model.down_blocks.1.attentions.0.proj_in.lora_{name}.weight": each
        for name, each in zip("AB", SMALL.values(), strict=True)
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1}))
    for name in ("adapter_model.safetensors", "mine.safetensors"):
        save_file(tensors, tmp_path / name)
    assert read(tmp_path / "adapter_model.safetensors").unet[LAYER].weight().flatten()[0] == 1
    assert read(tmp_path / "mine.safetensors").unet[LAYER].weight().flatten()[0] == 4


def test_a_file_runs_nothing(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    path, marker = tmp_path / "a.pt", tmp_path / "ran"
    path.write_bytes(b"\x80\x02" + marker_call(marker) + b".")
    with pytest.raises(ModelError, match=r"a\.pt"):
        read(path)
    assert not marker.exists()


def test_a_truncated_file_is_refused(tmp_path: Path, read: Callable[[Path], Adapter]) -> None:
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        save_file(SMALL, path) if name.endswith("s") else torch.save(SMALL, path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ModelError, match=f"{name}.*incomplete|{name}.*not a complete"):
            read(path)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            {"emb_params": torch.ones(1, 768)},
            "not a LoRA: it is a textual-inversion embedding: put it into embeddings/",
        ),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)},
            "not a LoRA: it is a checkpoint",
        ),
        ({"x": torch.ones(3)}, "none of its 1 tensors fits this model: x"),
        ({}, "none of its 0 tensors"),
    ],
)
def test_another_kind_of_file_is_refused(
    tensors: dict[str, Tensor], what: str, tmp_path: Path, read: Callable[[Path], Adapter]
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=what) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_description_needs_no_networks_and_reads_no_tensors(tmp_path: Path) -> None:
    names = {
        f"{NAME}.lora_down.weight": torch.ones(4, 320),
        f"{NAME}.lora_up.weight": torch.ones(320, 4),
        f"{NAME}.dora_scale": torch.ones(320, 1),
        "lora_te_text_model_encoder_layers_11_mlp_fc1.hada_w1_a": torch.ones(3072, 8),
        "lora_te_text_model_encoder_layers_11_mlp_fc1.hada_w1_b": torch.ones(8, 768),
        "lora_unet_conv_norm_out.w_norm": torch.full((320,), float("nan")),
        "lora_unet_other.lora_up.weight": torch.ones(1),
        "bundle_emb.my.word.string_to_param.*": torch.ones(1, 768),
    }
    save_file(names, tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    with open_checkpoint(tmp_path / "a.safetensors") as file:
        description = describe_adapter(file)
    assert description.families == {"LoRA with DoRA": 1, "LoHa": 1, "norm": 1}
    assert description.modules == {"unet": 2, "text": 1}
    assert description.ranks == (4, 8)
    assert description.base == "Stable Diffusion v1.x"
    assert description.embeddings == ("my.word",)
    assert description.ignored == ("lora_unet_other.lora_up.weight",)
