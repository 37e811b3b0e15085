"""A UNet step beside the fastest products of this machine. `python -m bench.peak [--dtype bf16]`

The step is one call with guidance at 512x512. Its floating-point operations are counted by shape, on the meta device.
The peaks are the fastest of some matrix products and of v1.5's own 3x3 convolutions, in each dtype that the device
supports, with torch's default settings.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import Options, parse, random_model, report, summary, time_in_turn
from sd_core.device import DTYPES
from tests.support.operations import ROWS, count_operations, unet_inputs

MATRIX_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (2048, 4096, 8192, 16384)}
# Channels and side of v1.5's levels at 512x512.
FEATURE_MAPS = ((320, 64), (640, 32), (1280, 16))


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=7)
    model = random_model(options)
    config, side = model.architecture.unet, 8 if options.tiny else 64
    unet = model.load(options).networks.unet
    latents, timesteps, context = unet_inputs(config, side, options.device)
    sides = _products(options) | {"step": lambda: unet(latents, timesteps, unet.given(context))}
    seconds = time_in_turn(sides, options)
    operations = _operations(options) | {"step": count_operations(config, side)}
    rates = {name: operations[name] / statistics.median(spent) / 1e9 for name, spent in seconds.items()}
    peaks = {
        dtype: {
            kind: max(rate for name, rate in rates.items() if name.startswith(f"{kind} {dtype} "))
            for kind in ("matmul", "conv")
        }
        for dtype in _dtypes(options)
    }
    peak = peaks[options.dtype]
    return report(
        "peak",
        options,
        latents=[ROWS, 4, side, side],
        gflop_a_row=round(operations["step"] / ROWS / 1e9, 2),
        step_s=summary(seconds["step"], digits=5),
        step_gflop_per_s=round(rates["step"], 1),
        peak_gflop_per_s={dtype: {kind: round(rate, 1) for kind, rate in of.items()} for dtype, of in peaks.items()},
        efficiency={kind: round(rates["step"] / rate, 3) for kind, rate in peak.items()},
        products_gflop_per_s={name: round(rate, 1) for name, rate in rates.items() if name != "step"},
    )


def _dtypes(options: Options) -> tuple[str, ...]:
    return ("fp32", "bf16") if options.device.type == "cpu" else ("fp32", "bf16", "fp16")


def _matrix_sides(options: Options) -> tuple[int, ...]:
    return (64,) if options.tiny else MATRIX_SIDES.get(options.device.type, MATRIX_SIDES["cpu"])


def _feature_maps(options: Options) -> tuple[tuple[int, int], ...]:
    return ((32, 8),) if options.tiny else FEATURE_MAPS


def _products(options: Options) -> dict[str, Callable[[], object]]:
    """A function for every product, by kind, dtype and shape."""
    return {
        f"{kind} {dtype} {shape}": make(options, DTYPES[dtype], *sizes)
        for dtype in _dtypes(options)
        for kind, make, shape, sizes in _kinds(options)
    }


def _operations(options: Options) -> dict[str, int]:
    """The floating-point operations of each product."""
    return {
        f"{kind} {dtype} {shape}": 2 * sizes[0] ** 3 if kind == "matmul" else 2 * ROWS * 9 * (sizes[0] * sizes[1]) ** 2
        for dtype in _dtypes(options)
        for kind, _, shape, sizes in _kinds(options)
    }


Make = Callable[..., Callable[[], object]]


def _kinds(options: Options) -> list[tuple[str, Make, str, tuple[int, ...]]]:
    matrices = [("matmul", _matmul, f"{n}x{n}", (n,)) for n in _matrix_sides(options)]
    maps = [("conv", _conv, f"{channels}@{n}x{n}", (channels, n)) for channels, n in _feature_maps(options)]
    return [*matrices, *maps]


def _matmul(options: Options, dtype: torch.dtype, side: int) -> Callable[[], Tensor]:
    left, right = (torch.randn(side, side, device=options.device).to(dtype) for _ in range(2))
    return lambda: left @ right


def _conv(options: Options, dtype: torch.dtype, channels: int, side: int) -> Callable[[], Tensor]:
    x = torch.randn(ROWS, channels, side, side, device=options.device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=options.device)
    weight = weight.to(dtype, memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1)


if __name__ == "__main__":
    main()
