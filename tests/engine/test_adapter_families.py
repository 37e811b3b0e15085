"""Every family of adapters as a job has it: beside a neighbour, on every layer, as if merged into the weights."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_core.adapters.names import Names
from sd_core.additions import Lora
from sd_core.engine.engine import Engine
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX
from sd_core.pipeline.adapters import read_adapter
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.adapter_files import kohya_name
from tests.support.adapters import merged
from tests.support.loras import engine_in
from tests.support.pictures import levels_apart

STRENGTH = 0.8
REQUEST = Request("a cat", seed=3, width=64, height=64, steps=2, sampler="euler", schedule="default")
FAMILIES = ("LoRA", "LoHa", "LoKr", "DoRA", "full", "IA3", "OFT")


def change_of(family: str, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A file's tensors for one layer: a change of about a third of the weight's size."""
    out, inputs, size = len(weight), weight[0].numel(), 0.3 * float(weight.std())

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    low_rank = {"lora_down.weight": drawn(4, *weight.shape[1:]), "lora_up.weight": drawn(out, 4) * size / 2}
    if family == "DoRA":
        return low_rank | {"dora_scale": weight.flatten(1).norm(dim=1, keepdim=True) * (1 + 0.3 * drawn(out, 1))}
    if family == "LoHa":
        parts = {"hada_w1_a": drawn(out, 2) * size / 2, "hada_w1_b": drawn(2, inputs)}
        return parts | {"hada_w2_a": drawn(out, 2), "hada_w2_b": drawn(2, inputs)}
    if family == "LoKr":
        return {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(out // 2, weight.shape[1] // 2, *weight.shape[2:]) * size}
    if family == "full":
        return {"diff": drawn(*weight.shape) * size, "diff_b": drawn(out) * size}
    if family == "IA3":
        return {"weight": 0.3 * drawn(out), "on_input": torch.tensor(0)}
    if family == "OFT":
        return {"oft_blocks": 0.2 * drawn(out // 4, 4, 4)}
    return low_rank


def write_mixture(path: Path, model: StableDiffusion) -> None:
    """A file that changes every layer of both networks, each by the next of the families."""
    networks = model.networks
    generator, families = torch.Generator().manual_seed(0), cycle(FAMILIES)
    tensors: dict[str, Tensor] = {}
    for (network, name), layer in Names.of(networks.unet, networks.text_encoder).layers.items():
        weight = layer.get_parameter("weight")
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            norm = torch.randn(2, len(weight), generator=generator) * 0.2 * float(weight.std())
            parts = {"w_norm": norm[0], "b_norm": norm[1] / 10}
        elif name == "out.2":  # a change of the last layer would outshine all others
            continue
        else:
            has_bias = layer.bias is not None
            family = next(each for each in families if has_bias or each != "full")
            parts = change_of(family, weight, generator)
        prefix = kohya_name(network, name, networks.unet.config)
        tensors |= {f"{prefix}.{part}": tensor for part, tensor in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, tiny_model: StableDiffusion) -> Path:
    folder = tmp_path_factory.mktemp("volume")
    write_mixture(folder / "loras" / "mixture.safetensors", tiny_model)
    return folder


@pytest.fixture(scope="module")
def engine(volume: Path, tiny_model: StableDiffusion) -> Iterator[Engine]:
    with engine_in(volume, tiny_model) as engine:
        yield engine


def merged_model(path: Path, model: StableDiffusion, checkpoint: Path, folder: Path) -> StableDiffusion:
    """The model with the file's changes in its weights."""
    networks = model.networks
    adapter = read_adapter(path, networks.unet, networks.text_encoder, torch.device("cpu"), torch.float32)
    assert not adapter.ignored
    weights = load_file(checkpoint)
    for prefix, network, deltas in (
        (UNET_PREFIX, networks.unet, adapter.unet),
        (TEXT_PREFIX, networks.text_encoder, adapter.text),
    ):
        weights |= {prefix + name: each for name, each in merged(network, [(deltas, STRENGTH)]).items()}
    save_file(weights, folder / checkpoint.name)
    return StableDiffusion.load(folder / checkpoint.name, checkpoint.parent, "cpu", "fp32")


@pytest.mark.parametrize("tiling", [False, True])
def test_a_job_with_every_family_is_one_with_merged_weights(
    tiling: bool, engine: Engine, volume: Path, tiny_model: StableDiffusion, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain = replace(REQUEST, tiling=tiling)
    adapted = replace(plain, loras=(Lora(name="mixture", weight=STRENGTH),))
    pending = [engine.submit(each) for each in (adapted, plain)]  # in one forward
    ours, neighbour = (each.result().images[0] for each in pending)
    model = merged_model(volume / "loras" / "mixture.safetensors", tiny_model, tiny_checkpoint, tmp_path)
    with engine_in(tmp_path, model) as other:
        expected = other.submit(plain).result().images[0]
    assert levels_apart(ours, expected) <= 1
    assert levels_apart(ours, neighbour) > 10 < expected.std()
    assert levels_apart(neighbour, engine.submit(plain).result().images[0]) <= 1
