"""Folders of diffusers' -> the checkpoint that diffusers' own converters would have made them from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builder.__main__ import main
from builder.convert import convert
from sd_core.errors import ModelError
from sd_core.formats.load import load_networks
from tests.support.outcome import identity, metadata_of, names, same
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_pipeline
from tests.support.tokenizer_files import write_tokenizer

State = dict[str, Tensor]
UNET = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def weights() -> State:
    return random_state_dict(TINY)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory, weights: State) -> Path:
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(tokenizer, [])
    folder = tmp_path_factory.mktemp("pipeline")
    reference_pipeline(weights, TINY, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_once, tmp_path / "pipeline"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_becomes_the_checkpoint_that_it_was_made_from(folder: Path, destination: Path, weights: State) -> None:
    convert(folder, destination)
    assert same(load_file(destination), weights)
    architecture = load_networks(destination, torch.device("cpu"), torch.float32).architecture
    assert (architecture.unet, architecture.text, architecture.vae) == (TINY.unet, TINY.text, TINY.vae)
    assert (architecture.native_size, architecture.prediction_type) == (512, "epsilon")


def as_fp16_variant(folder: Path) -> None:
    path = folder / f"{UNET}.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, folder / f"{UNET}.fp16.safetensors")
    path.unlink()


def as_pickle(folder: Path) -> None:
    for stem, old in ((UNET, UNET), ("text_encoder/pytorch_model", "text_encoder/model")):
        torch.save(load_file(folder / f"{old}.safetensors"), folder / f"{stem}.bin")
        (folder / f"{old}.safetensors").unlink()


def as_shards(folder: Path) -> None:
    """One tensor a shard in turn, so that no shard has all that its names depend on."""
    path = folder / f"{UNET}.safetensors"
    shards: dict[str, State] = {f"{path.stem}-{index:05}-of-00003.safetensors": {} for index in (1, 2, 3)}
    places = {}
    for index, (name, tensor) in enumerate(sorted(load_file(path).items())):
        shard = [*shards][index % 3]
        shards[shard][name], places[name] = tensor, shard
    for shard, tensors in shards.items():
        save_file(tensors, path.with_name(shard))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    path.unlink()


def with_old_names(folder: Path) -> None:
    """As diffusers called the layers of the VAE's attention in its first versions."""
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    renamed = load_file(path)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        renamed = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in renamed.items()}
    save_file(renamed, path)


@pytest.mark.parametrize("rewritten", [as_fp16_variant, as_pickle, as_shards, with_old_names])
def test_weights_are_found_in_every_usual_file(
    folder: Path, destination: Path, weights: State, rewritten: Callable[[Path], None]
) -> None:
    rewritten(folder)
    convert(folder, destination)
    expected = weights
    if rewritten is as_fp16_variant:
        expected = {n: t.half() if n.startswith("model.diffusion_model.") else t for n, t in weights.items()}
    assert same(load_file(destination), expected)


def test_configurations_say_what_shapes_cannot_show(folder: Path, destination: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    change(folder / "unet/config.json", sample_size=96, attention_head_dim=4)
    change(folder / "vae/config.json", scaling_factor=0.5)
    convert(folder, destination)
    found = load_networks(destination, torch.device("cpu"), torch.float32).architecture
    assert (found.prediction_type, found.zero_terminal_snr, found.native_size) == ("v_prediction", True, 768)
    assert (found.unet.num_heads, found.vae.scale_factor) == (4, 0.5)
    convert(folder, destination, prediction_type="epsilon", force=True)
    assert metadata_of(destination)["sd_core.prediction_type"] == "epsilon"


def test_a_conversion_of_the_same_folder_is_kept(folder: Path, destination: Path) -> None:
    convert(folder, destination)
    before = identity(destination)
    convert(folder, destination)
    assert identity(destination) == before
    tensors = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, folder / "vae/diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(ModelError, match="exists and was made from another source"):
        convert(folder, destination)


def test_a_vae_in_diffusers_layout_replaces_that_of_a_checkpoint(
    folder: Path, destination: Path, weights: State
) -> None:
    source = folder.parent / "source.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, source)
    convert(source, destination, vae=folder / "vae/diffusion_pytorch_model.safetensors")
    found = load_file(destination)
    assert all(
        torch.equal(found[name], tensor if name.startswith("first_stage_model.") else torch.zeros_like(tensor))
        for name, tensor in weights.items()
    )


def without_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def without_weights(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").unlink()


def without_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def of_another_pipeline(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")


def with_another_activation(folder: Path) -> None:
    change(folder / "text_encoder/config.json", hidden_act="gelu")


def with_damaged_json(folder: Path) -> None:
    (folder / "unet/config.json").write_text('{"a": ')


def with_shards_elsewhere(folder: Path) -> None:
    index = folder / f"{UNET}.safetensors.index.json"
    (folder / f"{UNET}.safetensors").rename(folder / "elsewhere.safetensors")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}))


def with_heads_that_are_no_number(folder: Path) -> None:
    change(folder / "unet/config.json", attention_head_dim=[5, 10, 20, 20])


def with_an_unknown_tensor(folder: Path) -> None:
    path = folder / f"{UNET}.safetensors"
    save_file({**load_file(path), "time_embedding.cond_proj.weight": torch.zeros(4, 4)}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_unet, "a directory without unet/"),
        (without_weights, "unet holds no weights"),
        (without_vae, "the file lacks the VAE"),
        (of_another_pipeline, "it is a folder of StableDiffusionXLPipeline"),
        (with_another_activation, "text_encoder: hidden_act is 'gelu', not v1.x's 'quick_gelu'"),
        (with_damaged_json, "unet/config.json is not JSON"),
        (with_shards_elsewhere, "which is not a file beside it"),
        (with_heads_that_are_no_number, r"num_heads is '\[5, 10, 20, 20\]'"),
        (with_an_unknown_tensor, r"1 unexpected .*time_embedding\.cond_proj\.weight"),
    ],
)
def test_other_folders_are_refused(
    folder: Path, destination: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        convert(folder, destination)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert names(destination.parent) == []


def test_a_folder_is_converted_beside_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder.with_name("pipeline.safetensors"))
    assert main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "Stable Diffusion v1.x, 512 pixels, predicts epsilon" in printed and str(folder) in printed
