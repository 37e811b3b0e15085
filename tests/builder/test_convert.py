"""Conversions: what is written, over what, and what is refused."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builder import VERSION
from builder.convert import convert
from sd_core.errors import ModelError
from sd_core.formats.check import expected_shapes
from sd_core.formats.detect import Architecture
from sd_core.formats.load import load_networks
from sd_core.models.vae import VAEConfig
from tests.support.outcome import VAE, Save, State, identity, metadata_of, names, same

# What is written


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "bare"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_published_checkpoint_becomes_exactly_the_networks(
    published: State, state: State, tmp_path: Path, destination: Path, nested: bool, zipped: bool
) -> None:
    source = tmp_path / "model.ckpt"
    content = {"state_dict": published, "epoch": 3} if nested else published
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    assert convert(source, destination) == destination
    assert same(load_file(destination), state)
    assert names(destination.parent) == [destination.name]


def test_the_result_loads_and_is_of_the_sources_architecture(
    source: Path, destination: Path, tiny: Architecture
) -> None:
    convert(source, destination)
    networks = load_networks(destination, torch.device("cpu"), torch.float32)
    assert networks.architecture == tiny


def test_the_metadata_says_where_the_file_comes_from(source: Path, destination: Path, tiny: Architecture) -> None:
    convert(source, destination, dtype="fp16")
    metadata = metadata_of(destination)
    assert metadata["format"] == "pt"
    assert metadata["sd_core.source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["sd_core.dtype"] == "fp16"
    assert metadata["sd_core.builder_version"] == VERSION
    architecture = json.loads(metadata["sd_core.architecture"])
    assert tuple(architecture["unet"]["channels"]) == tiny.unet.channels
    assert architecture["native_size"] == 512


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_every_tensor_is_cast_to_a_chosen_dtype(
    source: Path, destination: Path, state: State, name: str, dtype: torch.dtype
) -> None:
    convert(source, destination, dtype=name)
    assert same(load_file(destination), {name: tensor.to(dtype) for name, tensor in state.items()})


def test_without_a_dtype_each_tensor_stays_as_stored(save: Save, destination: Path, state: State) -> None:
    mixed = {name: tensor.half() if "attn" in name else tensor for name, tensor in state.items()}
    convert(save(mixed), destination)
    assert same(load_file(destination), mixed)
    assert metadata_of(destination)["sd_core.dtype"] == "mixed (fp16, fp32)"


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
def test_eight_bit_floats_are_kept_or_cast(
    tmp_path: Path, destination: Path, state: State, kind: torch.dtype, suffix: str
) -> None:
    source = tmp_path / f"small.{suffix}"
    small = {name: tensor.to(kind) if tensor.ndim > 1 else tensor.half() for name, tensor in state.items()}
    save_file(small, source) if suffix == "safetensors" else torch.save({"state_dict": small}, source)
    assert same(load_file(convert(source, destination)), small)
    convert(source, destination, dtype="fp16", force=True)
    assert same(load_file(destination), {name: tensor.half() for name, tensor in small.items()})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_values_beside_the_weights_do_not_stop_a_conversion(
    state: State, tmp_path: Path, destination: Path, zipped: bool
) -> None:
    noted = torch.nn.Parameter(state[UNET + "out.0.weight"])
    noted.note = "an attribute"
    beside = {"a": {1}, "b": torch.float16, "c": Counter("x"), "d": 1j, "e": bytearray(b"x"), "f": np.ones(2)}
    weights = state | {
        UNET + "out.0.weight": noted,
        UNET + "out.0.bias": torch.ones(1).expand(32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77).to(torch.uint16)[None],
        "extras": torch.nn.ParameterDict({"a": torch.ones(1)}),
    }
    source = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights} | beside, source, _use_new_zipfile_serialization=zipped)
    convert(source, destination)
    assert same(load_file(destination), state | {UNET + "out.0.bias": torch.ones(32)})


V_PREDICTION = {"sd_core.prediction_type": "v_prediction", "sd_core.zero_terminal_snr": "false"}
DECLARED: dict[str, tuple[State, dict[str, str], dict[str, str]]] = {
    "nothing": ({}, {}, {"sd_core.prediction_type": "epsilon", "sd_core.zero_terminal_snr": "false"}),
    "v": ({}, {"modelspec.prediction_type": "v"}, V_PREDICTION),
    "v_prediction": ({}, {"modelspec.prediction_type": "v_prediction"}, V_PREDICTION),
    "ComfyUI's key": ({}, {"modelspec.predict_key": "v"}, V_PREDICTION),
    "an earlier conversion": (
        {},
        V_PREDICTION | {"sd_core.zero_terminal_snr": "true"},
        {"sd_core.zero_terminal_snr": "true"},
    ),
    "marker": ({"v_pred": torch.tensor([])}, {}, V_PREDICTION),
    "both markers": (
        {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
        {},
        V_PREDICTION | {"sd_core.zero_terminal_snr": "true"},
    ),
}


@pytest.mark.parametrize(("markers", "metadata", "expected"), DECLARED.values(), ids=DECLARED.keys())
def test_the_prediction_type_is_kept_in_the_metadata(
    tmp_path: Path,
    destination: Path,
    state: State,
    markers: State,
    metadata: dict[str, str],
    expected: dict[str, str],
) -> None:
    source = tmp_path / "model.safetensors"
    save_file(state | markers, source, metadata)
    convert(source, destination)
    assert same(load_file(destination), state)
    assert metadata_of(destination).items() >= expected.items()
    found = load_networks(destination, torch.device("cpu"), torch.float32).architecture
    assert found.prediction_type == metadata_of(destination)["sd_core.prediction_type"]
    assert found.zero_terminal_snr == (metadata_of(destination)["sd_core.zero_terminal_snr"] == "true")


@pytest.mark.parametrize("nested", [True, False])
def test_markers_of_a_pickle_are_kept(save: Save, state: State, destination: Path, nested: bool) -> None:
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    source = save(state | markers)
    if not nested:
        torch.save({"state_dict": state} | markers, source)
    convert(source, destination)
    assert metadata_of(destination).items() >= (V_PREDICTION | {"sd_core.zero_terminal_snr": "true"}).items()


def test_a_prediction_type_by_choice_replaces_the_declared_one(save: Save, state: State, destination: Path) -> None:
    marked = save(state | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, "marked.ckpt")
    convert(marked, destination, prediction_type="epsilon")
    found = load_networks(destination, torch.device("cpu"), torch.float32).architecture
    assert (found.prediction_type, found.zero_terminal_snr) == ("epsilon", False)
    before = identity(destination)
    with pytest.raises(ModelError, match="other options; --force replaces it"):
        convert(marked, destination)
    convert(marked, destination, prediction_type="epsilon")
    assert identity(destination) == before
    convert(save(state), destination, prediction_type="v_prediction", force=True)
    assert metadata_of(destination).items() >= V_PREDICTION.items()
    with pytest.raises(ModelError, match="'flow' is not one of epsilon, v_prediction"):
        convert(marked, destination, prediction_type="flow")


def test_a_declaration_that_is_refused_can_be_replaced(tmp_path: Path, state: State, destination: Path) -> None:
    source = tmp_path / "model.safetensors"
    for markers, metadata, message in (
        ({}, {"modelspec.prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"v_pred": torch.tensor([])}, {"modelspec.prediction_type": "epsilon"}, "contradicts itself"),
    ):
        save_file(state | markers, source, metadata)
        with pytest.raises(ModelError, match=rf"{message}.*--prediction-type"):
            convert(source, destination)
        convert(source, destination, prediction_type="v_prediction", force=True)
        assert metadata_of(destination).items() >= V_PREDICTION.items()


def test_a_conversion_by_an_older_builder_is_kept(save: Save, state: State, destination: Path) -> None:
    source = save(state)
    metadata = metadata_of(convert(source, destination))
    old = {key: text for key, text in metadata.items() if key not in V_PREDICTION}
    assert len(old) == len(metadata) - 2
    save_file(load_file(destination), destination, old)
    before = identity(destination)
    convert(source, destination)
    assert identity(destination) == before


def test_averages_are_taken_by_choice(source: Path, destination: Path, state: State) -> None:
    convert(source, destination, use_ema=True)
    expected = {name: tensor + 1 if name.startswith("model.") else tensor for name, tensor in state.items()}
    assert same(load_file(destination), expected)


def test_metadata_of_a_safetensors_source_is_kept(tmp_path: Path, state: State, destination: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_file(
        state,
        source,
        {"sd_core.native_size": "128", "sd_core.latent_to_rgb": "[]", "sd_core.num_heads": "4", "other": "x"},
    )
    convert(source, destination)
    metadata = metadata_of(destination)
    assert (metadata["sd_core.native_size"], metadata["sd_core.latent_to_rgb"]) == ("128", "[]")
    assert metadata["sd_core.num_heads"] == "4"
    assert "other" not in metadata
    assert same(load_file(destination), state)
    assert load_networks(destination, torch.device("cpu"), torch.float32).architecture.native_size == 128


@pytest.mark.parametrize("form", ["bare", "prefixed", "checkpoint"])
def test_the_vae_may_come_from_another_file(
    source: Path, destination: Path, state: State, tmp_path: Path, form: str
) -> None:
    other = {name: tensor * 2 for name, tensor in state.items() if name.startswith(VAE)}
    vae = tmp_path / "vae.file"
    if form == "bare":
        torch.save(
            {"state_dict": {n.removeprefix(VAE): t for n, t in other.items()} | {"loss.logvar": torch.zeros(1)}}, vae
        )
    elif form == "prefixed":
        save_file(other, vae)
    else:
        save_file({name: tensor * 2 for name, tensor in state.items()}, vae)
    convert(source, destination, vae=vae)
    assert same(load_file(destination), state | other)


def test_a_missing_vae_can_be_supplied(save: Save, destination: Path, state: State, tmp_path: Path) -> None:
    source = save({name: tensor for name, tensor in state.items() if not name.startswith(VAE)})
    with pytest.raises(ModelError, match=r"lacks the VAE.*--vae FILE"):
        convert(source, destination)
    vae = tmp_path / "vae.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name.startswith(VAE)}, vae)
    convert(source, destination, vae=vae)
    assert same(load_file(destination), state)


def test_tensors_are_aligned_for_vector_instructions(source: Path, destination: Path) -> None:
    convert(source, destination)
    assert (8 + int.from_bytes(destination.read_bytes()[:8], "little")) % 64 == 0


def test_the_result_has_the_usual_permissions(source: Path, destination: Path) -> None:
    before = os.umask(0o022)
    try:
        convert(source, destination)
    finally:
        os.umask(before)
    assert destination.stat().st_mode & 0o777 == 0o644


def test_progress_counts_the_bytes_hashed_and_written(source: Path, destination: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(source, destination, progress=lambda done, total: calls.append((done, total)))
    done, total = calls[-1]
    assert done == total > source.stat().st_size
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert {call[1] for call in calls} == {total}


# Again, and over an existing file


def test_the_same_conversion_again_keeps_the_file(source: Path, destination: Path) -> None:
    before = identity(convert(source, destination, dtype="fp16"))
    assert identity(convert(source, destination, dtype="fp16")) == before
    assert identity(convert(source, destination, dtype="fp16", force=True)) != before


@pytest.mark.parametrize("options", [{"dtype": "fp16"}, {"use_ema": True}, {"vae": True}])
def test_other_options_need_force(source: Path, destination: Path, state: State, options: dict[str, object]) -> None:
    if "vae" in options:
        options = {"vae": source.with_name("vae.safetensors")}
        save_file({name: tensor for name, tensor in state.items() if name.startswith(VAE)}, options["vae"])
    before = identity(convert(source, destination))
    with pytest.raises(ModelError, match="other options; --force replaces it"):
        convert(source, destination, **options)  # type: ignore[arg-type]
    assert identity(destination) == before
    convert(source, destination, **options, force=True)  # type: ignore[arg-type]
    assert identity(destination) != before


def test_another_source_needs_force(source: Path, destination: Path, save: Save, state: State) -> None:
    convert(source, destination)
    with pytest.raises(ModelError, match="another source"):
        convert(save(state, "other.ckpt"), destination)


@pytest.mark.parametrize("content", [b"", b"something of the user's own"])
def test_a_file_that_is_not_a_model_needs_force(source: Path, destination: Path, content: bytes) -> None:
    destination.write_bytes(content)
    with pytest.raises(ModelError, match="--force replaces it"):
        convert(source, destination)
    assert destination.read_bytes() == content
    convert(source, destination, force=True)
    assert metadata_of(destination)


# What is refused


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


UNET = "model.diffusion_model."
with warnings.catch_warnings(action="ignore"):
    QUANTIZED = torch.quantize_per_tensor(torch.zeros(32), 0.1, 0, torch.qint8)
CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda s: s.pop(UNET + "out.0.bias"), r"1 missing .*out\.0\.bias"),
    "misshaped": (lambda s: s.update({UNET + "out.0.bias": torch.zeros(7)}), r"is \[7\], not \[32\]"),
    "unknown": (lambda s: s.update({UNET + "odd.bias": torch.zeros(7)}), r"1 unexpected .*odd\.bias"),
    "4-bit pairs": (
        lambda s: s.update({UNET + "out.0.bias": torch.zeros(32, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}),
        "float4_e2m1fn_x2, which is not supported",
    ),
    "quantized": (lambda s: s.update({UNET + "out.0.bias": QUANTIZED}), r"out\.0\.bias is a quantized tensor"),
    "expanded without end": (
        lambda s: s.update({UNET + "out.0.bias": torch.zeros(1).expand(2**27)}),
        "is expanded from a storage of 1 elements",
    ),
    "whole numbers": (lambda s: s.update({UNET + "out.0.bias": torch.arange(32)}), "torch.int64, not floating"),
    "NaN": (lambda s: s.update({UNET + "out.0.bias": torch.full((32,), torch.nan)}), "NaN or infinities"),
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
    source = save(state | {UNET + "out.0.bias": torch.full((32,), 1e6)})
    with pytest.raises(ModelError, match=r"out\.0\.bias holds numbers up to 1e\+06, beyond the range of fp16"):
        convert(source, destination, dtype="fp16")
    assert names(destination.parent) == []
    convert(source, destination, dtype="bf16")


def test_missing_averages_are_named(save: Save, published: State, state: State, destination: Path) -> None:
    with pytest.raises(ModelError, match="no EMA weights: convert it without --use-ema"):
        convert(save(state), destination, use_ema=True)
    partial = dict(published)
    del partial["model_ema.diffusion_modelout0bias"]
    with pytest.raises(ModelError, match=r"no model_ema\.diffusion_modelout0bias"):
        convert(save(partial), destination, use_ema=True)


def test_a_file_without_a_vae_is_refused_as_vae(source: Path, destination: Path, tmp_path: Path, state: State) -> None:
    cases: list[tuple[State, str]] = [
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "a VAE in diffusers' layout"),
        ({n: t for n, t in state.items() if not n.startswith(VAE)}, "it holds no VAE"),
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
    save_file({n: torch.zeros(s) for n, s in expected_shapes(other).items() if n.startswith(VAE)}, vae)
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
