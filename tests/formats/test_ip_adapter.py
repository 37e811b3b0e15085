"""IP-Adapters and image encoders in files: what they are is said, and what they cannot be."""

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.image_encoder import describe_image_encoder, load_image_encoder, named_encoder
from sd_core.formats.ip_adapter import adapter_config, load_ip_adapter
from sd_core.models.image_encoder import ImageEncoderConfig
from sd_core.models.ip_adapter import IPAdapterConfig
from tests.support.ip_adapters import ADAPTERS, ENCODER, adapter_weights, as_open_clip, encoder_weights, nested

CPU = torch.device("cpu")
BASE = ADAPTERS["base"]
PLUS = ADAPTERS["plus"]
State = dict[str, Tensor]


def adapter(path: Path, state: State) -> None:
    save_file(state, path)
    load_ip_adapter(path, CPU, torch.float32)


def encoder(path: Path, state: State) -> None:
    save_file(state, path)
    load_image_encoder(path, CPU, torch.float32)


def changed(state: State, name: str, change: Callable[[Tensor], Tensor] | None) -> State:
    """A copy with one tensor changed, or without it."""
    kept = {other: each for other, each in state.items() if other != name}
    return kept if change is None else {**kept, name: change(state[name])}


def face_id(state: State) -> State:
    layers = {"image_proj.proj.0.weight": torch.ones(8, 8), "image_proj.proj.2.weight": torch.ones(8, 8)}
    return {**changed(state, "image_proj.proj.weight", None), **layers}


def with_nan(tensor: Tensor) -> Tensor:
    return tensor.clone().index_fill_(0, torch.tensor([0]), float("nan"))


KEYS = "ip_adapter.1.to_k_ip.weight"
BAD_ADAPTERS: dict[str, tuple[IPAdapterConfig, Callable[[State], State], str]] = {
    "SDXL": (replace(BASE, context_dim=2048), lambda state: state, "for Stable Diffusion XL, not for v1.x"),
    "another UNet's": (BASE, lambda state: changed(state, "ip_adapter.5.to_k_ip.weight", None), r"numbered \[1, 3, 7"),
    "FaceID": (BASE, face_id, "FaceID.*insightface.*not supported"),
    "FaceID by its LoRA": (
        BASE,
        lambda state: {**state, "ip_adapter.0.to_q_lora.down.weight": torch.ones(2, 2)},
        "FaceID",
    ),
    "no attentions": (
        BASE,
        lambda state: {"image_proj.proj.weight": torch.ones(2, 2)},
        "not an IP-Adapter.*_proj",
    ),
    "no projection": (BASE, lambda state: changed(state, "image_proj.norm.weight", None), "1 missing.*norm.weight"),
    "misshaped": (BASE, lambda state: changed(state, KEYS, lambda each: each[:, :-1].contiguous()), "another shape"),
    "flat": (BASE, lambda state: changed(state, KEYS, lambda each: each[0]), "to_k_ip.weight has the shape"),
    "NaN": (BASE, lambda state: changed(state, KEYS, with_nan), "to_k_ip.weight holds infinities or not-a-numbers"),
    "whole numbers": (BASE, lambda state: changed(state, KEYS, lambda each: each.int()), "not floating-point"),
    "odd resampler": (
        PLUS,
        lambda state: changed(state, "image_proj.layers.0.0.to_q.weight", lambda each: each[:-1]),
        "resampler that is not supported",
    ),
    "unknown projection": (PLUS, lambda state: changed(state, "image_proj.latents", None), "lacks image_proj.latents"),
}


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_an_adapter_that_cannot_be_used_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    config, change, reason = BAD_ADAPTERS[name]
    path = tmp_path / "bad.safetensors"
    with pytest.raises(ModelError, match=reason) as caught:
        adapter(path, change(adapter_weights(config)))
    assert str(caught.value).startswith(f"{path}: ")


PATCHES = "vision_model.embeddings.patch_embedding.weight"
BAD_ENCODERS: dict[str, tuple[Callable[[State], State], str]] = {
    "an adapter": (lambda state: adapter_weights(BASE), "not a CLIP image encoder"),
    "a text encoder": (lambda state: {"text_model.x": torch.ones(1)}, "not a CLIP image encoder"),
    "no layers": (lambda state: {name: each for name, each in state.items() if ".layers." not in name}, "0 layers"),
    "no patches": (lambda state: changed(state, PATCHES, None), "lacks .*patch_embedding"),
    "flat patches": (lambda state: changed(state, PATCHES, lambda each: each.flatten(1)), "has the shape"),
    "missing": (lambda state: changed(state, "vision_model.post_layernorm.bias", None), "1 missing.*post_layernorm"),
    "joined to nothing": (
        lambda state: {
            **as_open_clip(state),
            "visual.transformer.resblocks.0.attn.in_proj_bias": torch.zeros(()),
        },
        "in_proj_bias has the shape",
    ),
}


@pytest.mark.parametrize("name", BAD_ENCODERS)
def test_an_encoder_that_cannot_be_used_is_refused(tmp_path: Path, name: str) -> None:
    change, reason = BAD_ENCODERS[name]
    path = tmp_path / "bad.safetensors"
    with pytest.raises(ModelError, match=reason) as caught:
        encoder(path, change(encoder_weights()))
    assert str(caught.value).startswith(f"{path}: ")
    with nullcontext() if name == "missing" else pytest.raises(ModelError):
        describe_image_encoder(path)


def test_truncated_and_malicious_files(tmp_path: Path) -> None:
    path = tmp_path / "adapter.bin"
    torch.save(nested(adapter_weights(BASE)), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError):
        load_ip_adapter(path, CPU, torch.float32)

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"image_proj": {"x": Touch()}}, path, pickle_module=pickle)
    with pytest.raises(ModelError):
        load_ip_adapter(path, CPU, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_the_published_sizes_are_recognized() -> None:
    """By shapes alone: the defaults are those of the base adapter for v1.5 and of ViT-H/14."""
    width = ImageEncoderConfig()
    assert IPAdapterConfig().fits(width) and not IPAdapterConfig("plus").fits(width)
    assert IPAdapterConfig("plus", 16, image_width=1280).fits(width)
    assert not IPAdapterConfig(image_width=1280).fits(width), "that one needs ViT-bigG/14"
    assert (named_encoder(1024, None), named_encoder(None, 1280)) == ("CLIP ViT-H/14", "CLIP ViT-H/14")
    assert named_encoder(1280, None) == "CLIP ViT-bigG/14"
    assert named_encoder(48, 64) == "a CLIP image encoder with an embedding of width 48 and hidden states of width 64"
    weights = adapter_weights(ADAPTERS["plus"])
    assert adapter_config({name: tuple(each.shape) for name, each in weights.items()}) == ADAPTERS["plus"]


def test_half_precision_and_other_tensors_beside(tmp_path: Path) -> None:
    state = {name: each.half() for name, each in encoder_weights().items()}
    extras = {"vision_model.embeddings.position_ids": torch.arange(17)[None], "text_model.x": torch.ones(1)}
    save_file({**state, **extras}, tmp_path / "encoder.safetensors")
    loaded = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32, "key")
    assert (loaded.config, loaded.key, loaded.dtype) == (ENCODER, "key", torch.float32)
    assert loaded.nbytes == 4 * sum(each.numel() for each in state.values())
