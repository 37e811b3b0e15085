"""A plain worker to compare with: diffusers' pipeline, one job at a time, in the same SDK.

It takes a job's fields by our names and generates the same images. SD_WEIGHTS is a directory with one `.safetensors`
and its tokenizer; SD_DEVICE and SD_DTYPE must not be `auto`.
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


class DiffusersHandler:
    """A loaded pipeline; a call runs one job."""

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
        """`{"input": {...}}` -> the images as base64 PNG, under the names of our worker's response."""
        fields = job["input"]
        solver, schedule = resolve(fields["sampler"], None)
        self._pipeline.scheduler = reference_scheduler(solver, schedule, fields["steps"])
        count = fields["num_images"]
        result = self._pipeline(
            fields["prompt"],
            negative_prompt="",
            width=self._side,
            height=self._side,
            num_inference_steps=fields["steps"],
            guidance_scale=fields["scale"],
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(fields["seed"] + index) for index in range(count)],
        )
        images = [png_base64(image) for image in result.images]
        shown = {"image": images[0]} if count == 1 else {"images": images}
        return {"message": "success", "uid": fields["uid"], **shown}


def main() -> None:
    import runpod.serverless

    run = DiffusersHandler(Path(os.environ["SD_WEIGHTS"]), os.environ["SD_DEVICE"], os.environ["SD_DTYPE"])

    def handler(job: dict[str, Any]) -> dict[str, Any]:
        return run(job)

    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    main()
