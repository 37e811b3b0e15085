"""Conversions: what is written, and over which existing files."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builder import VERSION
from builder.convert import convert, ensure_converted
from sd_core.errors import ModelError
from sd_core.formats.detect import Architecture
from sd_core.formats.keys import UNET_PREFIX, VAE_PREFIX
from sd_core.formats.load import load_networks, load_parts
from tests.support.outcome import Save, State, identity, metadata_of, names, same


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
    noted = torch.nn.Parameter(state[UNET_PREFIX + "out.0.weight"])
    noted.note = "an attribute"
    beside = {"a": {1}, "b": torch.float16, "c": Counter("x"), "d": 1j, "e": bytearray(b"x"), "f": np.ones(2)}
    weights = state | {
        UNET_PREFIX + "out.0.weight": noted,
        UNET_PREFIX + "out.0.bias": torch.ones(1).expand(32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77).to(torch.uint16)[None],
        "extras": torch.nn.ParameterDict({"a": torch.ones(1)}),
    }
    source = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights} | beside, source, _use_new_zipfile_serialization=zipped)
    convert(source, destination)
    assert same(load_file(destination), state | {UNET_PREFIX + "out.0.bias": torch.ones(32)})


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
    other = {name: tensor * 2 for name, tensor in state.items() if name.startswith(VAE_PREFIX)}
    vae = tmp_path / "vae.file"
    if form == "bare":
        torch.save(
            {"state_dict": {n.removeprefix(VAE_PREFIX): t for n, t in other.items()} | {"loss.logvar": torch.zeros(1)}},
            vae,
        )
    elif form == "prefixed":
        save_file(other, vae)
    else:
        save_file({name: tensor * 2 for name, tensor in state.items()}, vae)
    convert(source, destination, vae=vae)
    assert same(load_file(destination), state | other)


def test_a_missing_vae_can_be_supplied(save: Save, destination: Path, state: State, tmp_path: Path) -> None:
    source = save({name: tensor for name, tensor in state.items() if not name.startswith(VAE_PREFIX)})
    with pytest.raises(ModelError, match=r"lacks the VAE.*--vae FILE"):
        convert(source, destination)
    vae = tmp_path / "vae.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name.startswith(VAE_PREFIX)}, vae)
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
        save_file({name: tensor for name, tensor in state.items() if name.startswith(VAE_PREFIX)}, options["vae"])
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


def test_weights_in_eight_bits_become_fp16(save: Save, state: State, destination: Path) -> None:
    stem = UNET_PREFIX + "middle_block.1.proj_in"
    weight, scale = state[f"{stem}.weight"].to(torch.float8_e4m3fn), torch.tensor(0.5)
    convert(save({**state, f"{stem}.weight": weight, f"{stem}.scale_weight": scale}), destination)
    assert same(load_file(destination), {**state, f"{stem}.weight": (weight.float() * scale).half()})


def test_a_worker_converts_a_checkpoint_without_a_vae(save: Save, state: State, destination: Path) -> None:
    """It takes one from elsewhere; a person who converts is told how to add one."""
    partial = {name: tensor for name, tensor in state.items() if not name.startswith(VAE_PREFIX)}
    source = save(partial)
    with pytest.raises(ModelError, match=r"lacks the VAE.*--vae FILE"):
        convert(source, destination)
    ensure_converted(source, destination)
    assert same(load_file(destination), partial)
    assert load_parts(destination, torch.device("cpu"), torch.float32).contents.missing == ("the VAE",)
