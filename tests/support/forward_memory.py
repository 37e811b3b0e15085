"""The memory that forwards of the UNet and the VAE hold at their peak, beside what the engine counts on.

On a CPU torch's profiler reports every allocation, on a GPU its allocator knows its own peak. Weights are not counted.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sd_core.engine.memory import Memory, pixels_of
from sd_core.engine.runner import Runner
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Decode, Encode, UNetRows, Work

KINDS = {"one guided picture": (2,), "four mixed pictures": (2, 1, 2, 1), "encode": (), "decode": ()}
"""Forwards by name: the rows of each picture in one of the UNet, none in one of the VAE."""


def works_of(model: StableDiffusion, kind: str, side: int) -> list[Work]:
    """One forward's work on latents of side x side."""
    latents, width = torch.randn(1, 4, side, side, device=model.device), model.networks.unet.config.context_dim
    rows = KINDS[kind]
    if rows:
        return [UNetRows(latents, 500.0, torch.randn(count, 77, width, device=model.device)) for count in rows]
    if kind == "encode":
        return [Encode(torch.randn(1, 3, side * 8, side * 8, device=model.device), latents)]
    return [Decode(latents)]


def peak_and_counted(model: StableDiffusion, kind: str, side: int) -> dict[str, float]:
    """`peak_mb` and `counted_mb` of one forward of a kind in `KINDS`, on latents of side x side."""
    works, memory = works_of(model, kind, side), Memory.of(model)
    runner = Runner(model, memory)

    def forward() -> None:
        answers, held = runner.run(works)
        if not held or any(isinstance(answer, Exception) for answer in answers):
            raise RuntimeError(f"the forward failed: {answers}")

    counted = memory.bytes_a_pixel[type(works[0])] * sum(pixels_of(work) for work in works)
    with torch.inference_mode():
        forward()  # weights are packed, prompts read
        peak = _cuda_peak(forward) if model.device.type == "cuda" else _cpu_peak(forward)
    return {"peak_mb": round(peak / 1e6, 2), "counted_mb": round(counted / 1e6, 2)}


def _cuda_peak(forward: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(forward: Callable[[], None]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            forward()
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
