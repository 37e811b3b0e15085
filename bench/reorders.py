"""How much of a UNet step oneDNN spends on reordering. `python -m bench.reorders [--widths 64 192] [--sizes 64 512]`

Weights are packed at the first step; what is reordered at the second one is reordered at every step. `share` is the
time of that over the time of the whole step. Each width is a small UNet that has every kind of layer on two levels;
`--models` names real ones. The times are from oneDNN's log, on a CPU; writing the log takes some time itself.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from bench.common import LATENT_SIDE, Options, command_line, options_of, report
from sd_core.layout.choose import lay_out
from sd_core.models.unet import UNet, UNetConfig
from tests.support.onednn_log import Section, mark, mark_end, sections
from tests.support.operations import ROWS, count_operations

MODELS = {
    "v1.5": UNetConfig(),
    "demo": UNetConfig(channels=(64, 128, 128, 128), num_res_blocks=1, attention_levels=(1, 2), context_dim=128),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = command_line(__doc__ or "", rounds=1)
    parser.add_argument("--widths", type=int, nargs="*", default=list(range(64, 1281, 32)), help="multiples of 32")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["demo"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="pixels on a side")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--max-gflop", type=float, default=100.0, help="skip steps with more operations")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.widths, arguments.models, arguments.sizes, arguments.rows = [32], [], [64], [1]
    options = options_of(arguments)
    if arguments.child:
        log_steps(arguments, options)
        return {}
    child = ["-m", "bench.reorders", "--child", *(sys.argv[1:] if argv is None else argv)]
    steps = [measured(section) for section in sections(child)]
    return report(
        "reorders",
        options,
        max_gflop=arguments.max_gflop,
        steps=len(steps),
        largest_share=max(step["share"] for step in steps),
        reordering=[step for step in steps if step["reorders"]],
    )


def measured(section: Section) -> dict[str, Any]:
    """The reorders of a step beside the step."""
    reorders = section.reorders()
    seconds = sum(reorder.seconds for reorder in reorders)
    return {
        "step": section.label,
        "step_s": round(section.seconds, 5),
        "reorders": len(reorders),
        "reorders_s": round(seconds, 5),
        "share": round(seconds / section.seconds, 5),
    }


@torch.inference_mode()
def log_steps(arguments: argparse.Namespace, options: Options) -> None:
    """Compute each step twice, the second time in a section of the log that ends with its time."""
    for label, config in configurations(arguments):
        unet = random_unet(config, options)
        for size, rows in product(arguments.sizes, arguments.rows):
            if count_operations(config, size // LATENT_SIDE) * rows / ROWS > arguments.max_gflop * 1e9:
                continue
            latents = torch.randn(rows, config.in_channels, size // LATENT_SIDE, size // LATENT_SIDE)
            timesteps, given = torch.full((rows,), 500.0), unet.given(torch.randn(rows, 77, config.context_dim))
            unet(latents, timesteps, given)
            mark(f"{label} {size}x{size} {rows} rows")
            started = time.perf_counter()
            unet(latents, timesteps, given)
            mark_end(time.perf_counter() - started)


def configurations(arguments: argparse.Namespace) -> Iterator[tuple[str, UNetConfig]]:
    for name in arguments.models:
        yield name, MODELS[name]
    for width in arguments.widths:
        # The second level has another width, so that a convolution between the two is among them.
        yield f"width {width}", UNetConfig(channels=(width, width + 32), num_res_blocks=1, attention_levels=(1,))


def random_unet(config: UNetConfig, options: Options) -> UNet:
    """A UNet laid out for the device, with random weights in the compute dtype."""
    with torch.device("meta"):
        unet = UNet(config).to(options.torch_dtype)
    unet.to_empty(device=options.device).requires_grad_(False).eval()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.02)
    lay_out(unet, options.device, options.torch_dtype)
    return unet


if __name__ == "__main__":
    main()
