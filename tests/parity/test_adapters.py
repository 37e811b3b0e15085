"""Whole images with adapters, beside diffusers and PEFT with the same files fused into the weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from sd_core.adapters.names import UNET, Names
from sd_core.engine.engine import Engine
from sd_core.formats.detect import NATIVE_SIZE_KEY
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.pipeline.adapters import read_adapter
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from tests.support.adapter_files import random_lora
from tests.support.adapters import merged
from tests.support.networks import tiny_networks
from tests.support.pictures import psnr
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_pipeline
from tests.support.reference_schedulers import as_reference, reference_scheduler
from tests.support.tokenizer_files import write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers on NumPy 2

MIN_PSNR = 65.0
REQUEST = Request(
    "a cat", seed=3, width=64, height=64, negative_prompt="blurred", steps=3, sampler="euler", schedule="default"
)


class Side:
    """One random checkpoint in our core, and in a diffusers pipeline."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.weights = random_state_dict(TINY)
        text_encoder, unet, _ = tiny_networks(self.weights)
        self.text_encoder: CLIPTextEncoder = text_encoder
        self.unet: UNet = unet
        write_tokenizer(directory, [])
        self.without = self.image_of(self.weights)

    @property
    def names(self) -> Names:
        return Names.of(self.unet, self.text_encoder)

    def ours(self, path: Path, strength: float) -> np.ndarray:
        adapter = read_adapter(path, self.unet, self.text_encoder, torch.device("cpu"), torch.float32)
        assert not adapter.ignored
        weights = dict(self.weights)
        for prefix, network, deltas in (
            (UNET_PREFIX, self.unet, adapter.unet),
            (TEXT_PREFIX, self.text_encoder, adapter.text),
        ):
            weights |= {prefix + name: each for name, each in merged(network, [(deltas, strength)]).items()}
        return self.image_of(weights)

    def image_of(self, weights: dict[str, Tensor]) -> np.ndarray:
        path = self.directory / "merged.safetensors"
        save_file(weights, path, metadata={NATIVE_SIZE_KEY: str(TINY.native_size)})
        engine = Engine([StableDiffusion.load(path, self.directory, "cpu", "fp32")], max_batch=2)
        try:
            return engine.submit(REQUEST).result().images[0]
        finally:
            engine.close()

    def pipeline(self) -> Any:
        scheduler = reference_scheduler(REQUEST.sampler, REQUEST.schedule, REQUEST.steps)
        return reference_pipeline(
            {name: tensor.clone() for name, tensor in self.weights.items()}, TINY, self.directory, scheduler
        )

    def theirs(self, path: Path, strength: float) -> np.ndarray:
        pipe = self.pipeline()
        pipe.load_lora_weights(path)
        pipe.fuse_lora(lora_scale=strength)
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(REQUEST.seed))
        solver = SOLVERS[REQUEST.sampler]
        sigma = solver.grid(REQUEST.schedule, v1_schedule(), REQUEST.steps)[0]
        start = as_reference(REQUEST.sampler, solver.noised(None, noise, sigma), sigma)
        with torch.inference_mode():
            images = pipe(
                prompt=REQUEST.prompt,
                negative_prompt=REQUEST.negative_prompt,
                num_inference_steps=REQUEST.steps,
                guidance_scale=REQUEST.guidance_scale,
                latents=start / pipe.scheduler.init_noise_sigma,
                output_type="pil",
            ).images
        return np.asarray(images[0])


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    return Side(tmp_path_factory.mktemp("tiny"))


def kohya(side: Side, path: Path) -> None:
    save_file(random_lora(side.names, TINY.unet, rank=4, alpha=2.0), path)


def half_without_alpha(side: Side, path: Path) -> None:
    tensors = random_lora(side.names, TINY.unet, rank=4, alpha=None)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)


def locon(side: Side, path: Path) -> None:
    def is_convolution(network: str, name: str, layer: nn.Module) -> bool:
        return network == UNET and isinstance(layer, nn.Conv2d) and name not in ("input_blocks.0.0", "out.2")

    layers = [key for key, layer in side.names.layers.items() if is_convolution(*key, layer)]
    save_file(random_lora(side.names, TINY.unet, layers=layers), path)


def saved_by_diffusers(**options: Any) -> Callable[[Side, Path], None]:
    """A file in PEFT's spelling, as diffusers' training scripts save it, with the configuration in its metadata.

    DoRA is the UNet's alone: transformers does not load a text encoder's magnitudes.
    """

    def save(side: Side, path: Path) -> None:
        pipe = side.pipeline()
        of_unet = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v", "to_out.0", "conv1", "proj"], **options)
        of_text = LoraConfig(
            r=2, lora_alpha=1, target_modules=["q_proj", "fc1"], use_rslora=bool(options.get("use_rslora"))
        )
        metadata = {}
        for name, config in (("unet", of_unet), ("text_encoder", of_text)):
            network = getattr(pipe, name)
            network.add_adapter(config, "mine")
            randomize(network)
            metadata[f"{name}_lora_adapter_metadata"] = config.to_dict() | {
                "target_modules": sorted(config.target_modules)
            }
            metadata[f"{name}_lora_layers"] = peft_tensors(network)
        pipe.save_lora_weights(path.parent, weight_name=path.name, **metadata)

    return save


FILES: dict[str, Callable[[Side, Path], None]] = {
    "kohya": kohya,
    "fp16 without alpha": half_without_alpha,
    "LoCon": locon,
    "diffusers": saved_by_diffusers(),
    "diffusers, rank stabilized": saved_by_diffusers(use_rslora=True),
    "diffusers, DoRA": saved_by_diffusers(use_dora=True),
}


@pytest.mark.parametrize(
    "file", [pytest.param(name, marks=[] if name == "kohya" else pytest.mark.slow) for name in FILES]
)
def test_an_image_with_an_adapter_is_that_of_diffusers_and_peft(file: str, side: Side, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    FILES[file](side, path)
    strength = 1.0 if "DoRA" in file else 0.7  # PEFT's DoRA at another strength is another adapter
    ours, theirs = side.ours(path, strength), side.theirs(path, strength)
    assert psnr(ours, side.without) < 40, "the adapter changes too little to show a mistake"
    assert psnr(ours, theirs) >= MIN_PSNR


def randomize(network: nn.Module) -> None:
    """Give the second factors and the magnitudes of PEFT's layers random values of the size of the weights."""
    generator = torch.Generator().manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            up = layer.lora_B["mine"].weight
            up.data = torch.randn(up.shape, generator=generator) * weight.std()
            for vector in layer.lora_magnitude_vector.values():
                vector.weight.data *= 0.5 + torch.rand(vector.weight.shape, generator=generator)


def peft_tensors(network: nn.Module) -> dict[str, Tensor]:
    return get_peft_model_state_dict(network, adapter_name="mine")
