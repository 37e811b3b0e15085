"""The plain worker that ours is measured beside: diffusers' pipeline, one job at a time, in the same SDK.

It takes a job's fields by our names and draws what our worker would; SD_WEIGHTS is a directory with one `.safetensors`
and its tokenizer, SD_DEVICE and SD_DTYPE are names without `auto`.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sd_core.device import DTYPES
from sd_core.formats.detect import detect
from sd_core.sampling.registry import resolve
from tests.support.pictures import png_base64
from tests.support.reference import reference_pipeline
from tests.support.reference_schedulers import reference_scheduler


class Drawing:
    """A loaded pipeline, and the one way in which the platform asks it for pictures."""

    def __init__(self, weights: Path, device: str, dtype: str) -> None:
        (checkpoint,) = weights.glob("*.safetensors")
        with safe_open(checkpoint, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name).to(DTYPES[dtype]) for name in file.keys()}  # noqa: SIM118
            architecture = detect({name: tuple(tensor.shape) for name, tensor in tensors.items()}, file.metadata())
        self._side = architecture.native_size
        self._pipeline = reference_pipeline(tensors, architecture, weights).to(device)
        if device == "cuda":  # diffusers' own advice for speed
            for network in (self._pipeline.unet, self._pipeline.vae):
                network.to(memory_format=torch.channels_last)
            self._pipeline.unet = torch.compile(self._pipeline.unet, mode="max-autotune", fullgraph=True)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """`{"input": {...}}` -> the pictures as base64 PNG, under the names of our worker's response."""
        asked = job["input"]
        solver, schedule = resolve(asked["sampler"], None)
        self._pipeline.scheduler = reference_scheduler(solver, schedule, asked["steps"])
        count = asked["num_images"]
        drawn = self._pipeline(
            asked["prompt"],
            negative_prompt="",
            width=self._side,
            height=self._side,
            num_inference_steps=asked["steps"],
            guidance_scale=asked["scale"],
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(asked["seed"] + index) for index in range(count)],
        )
        pictures = [png_base64(image) for image in drawn.images]
        shown = {"image": pictures[0]} if count == 1 else {"images": pictures}
        return {"message": "success", "uid": asked["uid"], **shown}


def main() -> None:
    import runpod.serverless

    drawing = Drawing(Path(os.environ["SD_WEIGHTS"]), os.environ["SD_DEVICE"], os.environ["SD_DTYPE"])

    def handler(job: dict[str, Any]) -> dict[str, Any]:
        return drawing(job)

    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    main()
