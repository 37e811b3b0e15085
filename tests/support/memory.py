"""The peak memory of forwards, beside what the engine counts for them. Weights are not counted.

On a CPU torch's profiler reports every allocation, on a GPU its allocator reports the peak.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sd_core.adapters.apply import Adapter, Strength, applied_to_unet
from sd_core.engine.kinds import kinds_of
from sd_core.engine.kinds.hint import HintKind
from sd_core.engine.kinds.image_prompt import ImageKind
from sd_core.engine.memory import Memory
from sd_core.engine.pool import Pool
from sd_core.engine.runner import Runner
from sd_core.layout.choose import lay_out
from sd_core.models.controlnet import ControlNet, ControlNetConfig
from sd_core.models.image_encoder import ImageEncoder
from sd_core.models.ip_adapter import ImageTokenizer, IPAdapter, attention_widths
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import (
    UNATTACHED,
    Attachments,
    Context,
    Control,
    DecodeWork,
    EncodeWork,
    HintWork,
    ImagePrompt,
    ImageWork,
    TextWork,
    UNetWork,
)
from tests.support.adapters import random_deltas
from tests.support.controls import TINY_CONTROLNET, controlnet
from tests.support.ip_adapters import ADAPTERS, ENCODER, random_network
from tests.support.random_weights import TINY

# Forwards by name: for the UNet, the number of rows of each image; for other networks nothing.
KINDS = {
    "one guided image": (2,),
    "four mixed images": (2, 1, 2, 1),
    "two images with a ControlNet": (2, 2),
    "two images with image prompts": (2, 2),
    "two images with adapters": (2, 2),
    "encode": (),
    "decode": (),
    "text": (),
    "hint": (),
    "image": (),
}


def works_of(model: StableDiffusion, kind: str, side: int) -> list[Any]:
    """The works of one forward, on latents of side x side."""
    latents, width = torch.randn(1, 4, side, side, device=model.device), model.networks.unet.config.context_dim
    pixels = torch.rand(1, 3, side * 8, side * 8, device=model.device)
    if rows := KINDS[kind]:
        attached = UNATTACHED
        if "ControlNet" in kind:
            attached = attached_to(model, pixels)
        elif "image prompts" in kind:
            attached = images_attached_to(model)
        elif "adapters" in kind:
            attached = adapted(model)
        return [
            UNetWork(
                model.unet_key,
                latents,
                500.0,
                tuple(Context((image, row), torch.randn(1, 77, width, device=model.device)) for row in range(count)),
                (0,) * count,
                attached=attached,
            )
            for image, count in enumerate(rows)
        ]
    if kind == "encode":
        return [EncodeWork(model.vae_key, "image", 2 * pixels - 1)]
    if kind == "hint":
        return [HintWork(controlnet_of(model), "hint", pixels)]
    if kind == "image":
        return [image_work(model)]
    if kind == "decode":
        return [DecodeWork(model.vae_key, latents)]
    return [TextWork(model.text_key, tuple((token,) * 77 for token in range(16)))]


def adapted(model: StableDiffusion) -> Attachments:
    """Adapters of two families, both on every layer."""
    dtype = model.networks.unet.dtype
    applied = []
    for seed in range(2):
        deltas = random_deltas(model.networks.unet, seed)
        moved = {name: delta.to(model.device, dtype) for name, delta in deltas.items()}
        applied.append(applied_to_unet(Adapter(str(seed), moved), Strength(unet=0.1)))
    return Attachments(adapters=tuple(each for each in applied if each is not None))


def controlnet_of(model: StableDiffusion) -> ControlNet:
    """A random ControlNet for the model, laid out for its device."""
    config = (
        TINY_CONTROLNET if model.networks.unet.config == TINY.unet else ControlNetConfig(model.networks.unet.config)
    )
    network = controlnet(config).to(model.device, model.networks.unet.dtype)
    lay_out(network, model.device, model.networks.unet.dtype)
    return network


def attached_to(model: StableDiffusion, pixels: Tensor) -> Attachments:
    """A ControlNet with this hint."""
    network = controlnet_of(model)
    with torch.inference_mode():
        (hint,) = HintKind().run([HintWork(network, "hint", pixels)])
    return Attachments(controls=(Control(network, hint, (1.0,) * (len(network.zero_convs) + 1)),))


def image_work(model: StableDiffusion) -> ImageWork:
    """An image for a small encoder, and an adapter for the model's UNet."""
    unet = model.networks.unet
    config = replace(
        ADAPTERS["plus"], context_dim=unet.config.context_dim, attentions=attention_widths(unet), tokens=16
    )
    tokenizer = ImageTokenizer(random_network(ImageEncoder(ENCODER)), random_network(IPAdapter(config)))
    for network in (tokenizer.encoder, tokenizer.adapter):
        network.to(model.device, unet.dtype)
    return ImageWork(tokenizer, "image", torch.rand(1, 3, ENCODER.side, ENCODER.side, device=model.device))


def images_attached_to(model: StableDiffusion) -> Attachments:
    """An image prompt for all rows."""
    work = image_work(model)
    assert isinstance(work.network, ImageTokenizer)
    with torch.inference_mode():
        (tokens,) = ImageKind().run([work])
    return Attachments(image_prompts=(ImagePrompt(work.network.adapter, tokens, 0.5),))


def peak_and_counted(model: StableDiffusion, kind: str, side: int) -> dict[str, float]:
    """The peak megabytes of one forward, and those that the engine counts for it."""
    works, kinds = works_of(model, kind, side), kinds_of(Pool([model]), max_batch=8)
    runs = kinds[type(works[0])]
    runner = Runner(Memory(model.device), kinds.values())

    def forward() -> None:
        if isinstance(works[0], TextWork | HintWork | ImageWork):
            runs.release()  # otherwise what is kept would not be encoded again
        answers, fits = runner.run(runs, works)
        if not fits or any(isinstance(answer, Exception) for answer in answers):
            raise RuntimeError(f"the forward failed: {answers}")

    with torch.inference_mode():
        forward()  # weights are packed, prompts read
        peak = _cuda_peak(forward) if model.device.type == "cuda" else cpu_peak(forward)
    counted = sum(runs.bytes(work) for work in works)
    return {"peak_mb": round(peak / 1e6, 2), "counted_mb": round(counted / 1e6, 2)}


def _cuda_peak(forward: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(forward: Callable[[], object]) -> int:
    """Bytes that a computation holds at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            forward()
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocated = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak
