"""IP-Adapter beside transformers and diffusers on the same random weights, float32 on the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil

from sd_core.additions import IPAdapter
from sd_core.catalogue import Catalogue, folders_in
from sd_core.engine.engine import Engine
from sd_core.formats.image_encoder import load_image_encoder
from sd_core.formats.ip_adapter import load_ip_adapter
from sd_core.models.given import ImageRead
from sd_core.models.ip_adapter import ImageTokenizer, attention_order
from sd_core.pipeline.image_prompts import encoder_pixels
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from sd_core.volume import Library
from tests.support.counting import normal
from tests.support.ip_adapters import (
    ADAPTERS,
    ENCODER,
    adapter_weights,
    as_open_clip,
    encoder_weights,
    nested,
    write_adapter,
    write_encoder,
)
from tests.support.networks import tiny_networks
from tests.support.pictures import psnr
from tests.support.random_weights import TINY, random_state_dict, write_checkpoint
from tests.support.reference import reference_pipeline
from tests.support.reference_ip_adapters import add_ip_adapters, ip_adapted_unet, reference_image_encoder
from tests.support.reference_schedulers import as_reference, reference_scheduler
from tests.support.tokenizer_files import write_tokenizer

CPU = torch.device("cpu")
TOLERANCE = 1e-4
MIN_PSNR = 65.0


def difference(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize("file", ["transformers", "OpenCLIP", "quick GELU"])
def test_the_image_encoder(tmp_path: Path, file: str) -> None:
    config = replace(ENCODER, width=768, heads=12, has_quick_gelu=True) if file == "quick GELU" else ENCODER
    weights = encoder_weights(config)
    save_file(as_open_clip(weights) if file == "OpenCLIP" else weights, tmp_path / "encoder.safetensors")
    ours = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32)
    assert ours.config == config
    pixels = normal(2, 3, 32, 32)
    theirs = reference_image_encoder(weights, config)(pixels, output_hidden_states=True)
    assert difference(ours.embedded(pixels), theirs.image_embeds) <= TOLERANCE
    assert difference(ours.hidden(pixels), theirs.hidden_states[-2]) <= TOLERANCE
    assert difference(theirs.hidden_states[-1], theirs.hidden_states[-2]) > 100 * TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize(
    ("layout", "suffix"),
    [("base", ".bin"), ("plus", ".safetensors"), pytest.param("full", ".bin", marks=pytest.mark.slow)],
)
def test_tokens_and_what_the_unet_makes_of_them(tmp_path: Path, layout: str, suffix: str) -> None:
    """diffusers counts the attentions of its own UNet, which proves their order."""
    write_encoder(tmp_path / "encoder.safetensors")
    write_adapter(tmp_path / f"adapter{suffix}", layout)
    encoder = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32)
    adapter = load_ip_adapter(tmp_path / f"adapter{suffix}", CPU, torch.float32)
    assert adapter.config == ADAPTERS[layout]
    weights = random_state_dict(TINY)
    reference = reference_image_encoder(encoder_weights(), ENCODER)
    reference_unet = ip_adapted_unet(weights, TINY.unet, [nested(adapter_weights(ADAPTERS[layout]))], 0.6)

    pixels, states, latents = normal(2, 3, 32, 32, seed=1), normal(2, 7, TINY.unet.context_dim), normal(2, 4, 8, 8)
    times = torch.tensor([981.0, 3.0])
    output = reference(pixels, output_hidden_states=True)
    embeds = output.image_embeds if layout == "base" else output.hidden_states[-2]
    unet = tiny_networks(weights)[1]
    tokens = ImageTokenizer(encoder, adapter).tokens(pixels)
    projected = reference_unet.encoder_hid_proj.image_projection_layers[0](embeds)
    assert difference(tokens, projected) <= TOLERANCE

    expected = reference_unet(latents, times, states, added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
    read = adapter.read(tokens, attention_order(unet))
    given = unet.given(states)
    whole = replace(given, images={name: [ImageRead(keys, 0.6 * values)] for name, (keys, values) in read.items()})
    assert difference(unet(latents, times, whole), expected) <= TOLERANCE
    plain = unet(latents, times, given)
    assert difference(plain, expected) > 100 * TOLERANCE
    one = {name: [ImageRead(keys[1:], 0.6 * values[1:], torch.tensor([1]))] for name, (keys, values) in read.items()}
    mixed = unet(latents, times, replace(given, images=one))
    assert difference(mixed[1:], expected[1:]) <= TOLERANCE
    assert torch.equal(mixed[0], plain[0]), "rows without images stay as they are"


@torch.inference_mode()
@pytest.mark.parametrize("layout", ADAPTERS)
def test_the_tokens_of_no_image(tmp_path: Path, layout: str) -> None:
    write_encoder(tmp_path / "encoder.safetensors")
    write_adapter(tmp_path / "adapter.bin", layout)
    encoder = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32)
    adapter = load_ip_adapter(tmp_path / "adapter.bin", CPU, torch.float32)
    zeros = reference_image_encoder(encoder_weights(), ENCODER)(torch.zeros(1, 3, 32, 32), output_hidden_states=True)
    states = torch.zeros(1, ENCODER.embedding) if layout == "base" else zeros.hidden_states[-2]
    assert difference(ImageTokenizer(encoder, adapter).no_tokens(), adapter.image_proj(states)) <= TOLERANCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with adapters and an encoder in the folders beside it."""
    folder = tmp_path_factory.mktemp("images")
    write_checkpoint(folder / "random.safetensors", TINY, torch.float32)
    write_tokenizer(folder, [])
    for name in ("clip_vision", "ip_adapters"):
        (folder / name).mkdir()
    write_encoder(folder / "clip_vision" / "encoder.safetensors")
    for layout in ADAPTERS:
        write_adapter(folder / "ip_adapters" / f"{layout}.bin", layout)
    return folder


def theirs(folder: Path, request: Request) -> np.ndarray:
    scheduler = reference_scheduler(request.sampler, request.schedule, request.steps)
    pipe = reference_pipeline(load_file(folder / "random.safetensors"), TINY, folder, scheduler)
    units = request.ip_adapters
    weights = [nested(adapter_weights(ADAPTERS[unit.model])) for unit in units]
    add_ip_adapters(pipe, reference_image_encoder(encoder_weights(), ENCODER), weights)
    pipe.set_ip_adapter_scale([unit.weight for unit in units])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(request.seed))
    sigma = SOLVERS[request.sampler].grid(request.schedule, v1_schedule(), request.steps)[0]
    start = as_reference(request.sampler, SOLVERS[request.sampler].noised(None, noise, sigma), sigma)
    with torch.inference_mode():
        images = pipe(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            height=64,
            width=64,
            latents=start / scheduler.init_noise_sigma,
            ip_adapter_image=[Image.fromarray(unit.image) for unit in units],
            output_type="pil",
        ).images
    return np.asarray(images[0])


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers on NumPy 2
@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("base",), 7.5),
        pytest.param(("plus", "full"), 5.0, marks=pytest.mark.slow),
        pytest.param(("plus",), 1.0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_whole_images(folder: Path, names: tuple[str, ...], scale: float) -> None:
    units = tuple(
        IPAdapter(model=name, image=noise(90 + 10 * index, 70, seed=index), weight=0.8 - index / 4)
        for index, name in enumerate(names)
    )
    request = Request(
        "a cat",
        seed=3,
        width=64,
        height=64,
        negative_prompt="blurred",
        steps=3,
        scale=scale,
        sampler="euler",
        schedule="default",
        ip_adapters=units,
    )
    library = Library(Catalogue(folders_in(folder)))
    engine = Engine([StableDiffusion.load(folder / "random.safetensors", folder, "cpu", "fp32")], 4, library=library)
    plain = replace(request, ip_adapters=(), seed=4)
    jobs = [engine.submit(each) for each in (plain, request, replace(request, seed=5))]
    ours = jobs[1].result().images[0]
    without = engine.submit(replace(request, ip_adapters=())).result().images[0]
    beside, alone = jobs[0].result().images[0], engine.submit(plain).result().images[0]
    engine.close()
    assert psnr(ours, theirs(folder, request)) >= MIN_PSNR
    assert psnr(ours, without) < 40, "an image without effect would hide mistakes"
    assert np.abs(beside.astype(int) - alone.astype(int)).max() <= 1


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """An image of large coloured spots."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(300, 224), (225, 301), (31, 64), (33, 33)], ids=str)
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    image = noise(*size, seed=1)
    for side in (32, 224):
        processor = CLIPImageProcessorPil(size=side, crop_size=side)
        theirs = processor(Image.fromarray(image), return_tensors="pt").pixel_values
        torch.testing.assert_close(encoder_pixels(image, side), theirs, rtol=0, atol=2e-6)
