"""Sources and paths that a conversion refuses: the error names the reason, and nothing is written."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from builder.convert import convert
from sd_core.errors import ModelError
from sd_core.formats.check import expected_shapes
from sd_core.formats.detect import Architecture
from sd_core.formats.keys import UNET_PREFIX, VAE_PREFIX
from sd_core.models.vae import VAEConfig
from tests.support.outcome import Save, State, names


def test_paths_are_checked_first(source: Path, destination: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    cases = [
        (tmp_path / "none.ckpt", destination, "does not exist"),
        (source, source, "is the source itself"),
        (source, link, "is the source itself"),
        (source, tmp_path / "out", "is a directory"),
        (source, tmp_path / "nowhere" / "x.safetensors", "is not a directory"),
        (tmp_path, destination, "is a directory"),
    ]
    for given, to, message in cases:
        with pytest.raises(ModelError, match=message):
            convert(given, to)
    assert names(destination.parent) == []


def test_an_unknown_dtype_is_named(source: Path, destination: Path) -> None:
    with pytest.raises(ModelError, match="'int8' is not one of fp16, bf16, fp32"):
        convert(source, destination, dtype="int8")


with warnings.catch_warnings(action="ignore"):
    QUANTIZED = torch.quantize_per_tensor(torch.zeros(32), 0.1, 0, torch.qint8)
CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda s: s.pop(UNET_PREFIX + "out.0.bias"), r"1 missing .*out\.0\.bias"),
    "misshaped": (lambda s: s.update({UNET_PREFIX + "out.0.bias": torch.zeros(7)}), r"is \[7\], not \[32\]"),
    "unknown": (lambda s: s.update({UNET_PREFIX + "odd.bias": torch.zeros(7)}), r"1 unexpected .*odd\.bias"),
    "4-bit pairs": (
        lambda s: s.update(
            {UNET_PREFIX + "out.0.bias": torch.zeros(32, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
        ),
        "float4_e2m1fn_x2, which is not supported",
    ),
    "quantized": (lambda s: s.update({UNET_PREFIX + "out.0.bias": QUANTIZED}), r"out\.0\.bias is a quantized tensor"),
    "expanded without end": (
        lambda s: s.update({UNET_PREFIX + "out.0.bias": torch.zeros(1).expand(2**27)}),
        "is expanded from a storage of 1 elements",
    ),
    "whole numbers": (lambda s: s.update({UNET_PREFIX + "out.0.bias": torch.arange(32)}), "torch.int64, not floating"),
    "NaN": (lambda s: s.update({UNET_PREFIX + "out.0.bias": torch.full((32,), torch.nan)}), "NaN or infinities"),
    "SDXL": (lambda s: s.update({"conditioner.embedders.0.x": torch.zeros(1)}), "Stable Diffusion XL"),
    "SD 2": (lambda s: s.update({"cond_stage_model.model.ln_final.bias": torch.zeros(1)}), r"Stable Diffusion 2\.x"),
    "LoRA": (
        lambda s: (s.clear(), s.update({"lora_unet_x.lora_up.weight": torch.zeros(1, 1)})),
        "a LoRA",
    ),
    "two names": (
        lambda s: s.update({"cond_stage_model.transformer.final_layer_norm.bias": torch.zeros(32)}),
        "two names",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_source_of_other_tensors_is_refused(
    save: Save, state: State, destination: Path, change: Callable[[State], object], message: str
) -> None:
    changed = dict(state)
    change(changed)
    with pytest.raises(ModelError, match=message):
        convert(save(changed), destination)
    assert names(destination.parent) == []


def test_numbers_beyond_half_precision_are_named(save: Save, state: State, destination: Path) -> None:
    source = save(state | {UNET_PREFIX + "out.0.bias": torch.full((32,), 1e6)})
    with pytest.raises(ModelError, match=r"out\.0\.bias holds numbers up to 1e\+06, beyond the range of fp16"):
        convert(source, destination, dtype="fp16")
    assert names(destination.parent) == []
    convert(source, destination, dtype="bf16")
    powers = torch.full((32,), 2.0**20).to(torch.float8_e8m0fnu)
    with pytest.raises(ModelError, match=r"holds numbers up to 1\.05e\+06, beyond the range of fp16"):
        convert(save(state | {UNET_PREFIX + "out.0.bias": powers}), destination, dtype="fp16", force=True)


def test_missing_averages_are_named(save: Save, published: State, state: State, destination: Path) -> None:
    with pytest.raises(ModelError, match="no EMA weights: convert it without --use-ema"):
        convert(save(state), destination, use_ema=True)
    partial = dict(published)
    del partial["model_ema.diffusion_modelout0bias"]
    with pytest.raises(ModelError, match=r"no model_ema\.diffusion_modelout0bias"):
        convert(save(partial), destination, use_ema=True)


def test_a_file_without_a_vae_is_refused_as_vae(source: Path, destination: Path, tmp_path: Path, state: State) -> None:
    cases: list[tuple[State, str]] = [
        ({"vision_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(1)}, "it is a CLIP image encoder"),
        ({n: t for n, t in state.items() if not n.startswith(VAE_PREFIX)}, "it holds no VAE"),
    ]
    for tensors, message in cases:
        vae = tmp_path / "vae.safetensors"
        save_file(tensors, vae)
        with pytest.raises(ModelError, match=message):
            convert(source, destination, vae=vae)
    with pytest.raises(ModelError, match="does not exist"):
        convert(source, destination, vae=tmp_path / "none")


def test_a_vae_of_other_latents_does_not_fit(
    source: Path, destination: Path, tmp_path: Path, tiny: Architecture
) -> None:
    other = Architecture(tiny.text, tiny.unet, VAEConfig(z_channels=16, channels=(32,), num_res_blocks=1))
    vae = tmp_path / "vae.safetensors"
    save_file({n: torch.zeros(s) for n, s in expected_shapes(other).items() if n.startswith(VAE_PREFIX)}, vae)
    with pytest.raises(ModelError, match="the VAE's latents have 16 channels, the UNet's 4"):
        convert(source, destination, vae=vae)


def test_hostile_pickles_run_nothing(tmp_path: Path, destination: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
            return open, (str(marker), "w")

    source = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"a": Evil()}}, source)
    with pytest.raises(ModelError, match=r"io\.open.*nothing in the file was run"):
        convert(source, destination)
    assert not marker.exists()
