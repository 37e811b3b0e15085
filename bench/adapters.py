"""One guided step with LoRAs, beside one without and beside diffusers with PEFT. `python -m bench.adapters`

Random LoRAs in kohya's spelling, of the layers that kohya's scripts train by default. `one` is a step of one image
with a LoRA, `four` that of four images with four different ones, both over the same without; `peft` is diffusers with
the first LoRA, unfused. `ready` is the time in which the file, then in the page cache, becomes an adapter.
`--demo` measures eight jobs of the demo model instead, with four LoRAs of rank 8: over the same without, and over a
worker that puts one image in a forward.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.common import (
    LATENT_SIDE,
    Options,
    options_of,
    random_model,
    ratio,
    relative_difference,
    report,
    served_model,
    step_command_line,
    summary,
    time_in_turn,
)
from bench.demo import PROMPT
from sd_core.adapters.apply import Adapter, Strength, applied_to_unet
from sd_core.adapters.names import Names
from sd_core.additions import Lora
from sd_core.catalogue import Catalogue, Kind
from sd_core.engine.engine import Engine
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.pool import Pool
from sd_core.formats.keys import UNET_PREFIX
from sd_core.pipeline.adapters import read_adapter
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.volume import Library
from sd_core.work import Attachments, Context, UNetWork
from tests.support.adapter_files import random_lora
from tests.support.reference import reference_unet

IMAGES = 4
JOBS, DEMO_RANK = 8, 8
SIZE = 0.05
"""Of a LoRA's changes over the weights."""


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = step_command_line(__doc__ or "", rounds=5)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--demo", action="store_true", help="eight jobs of the demo model instead")
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return _jobs(options, Path(folder)) if arguments.demo else _steps(arguments, options, Path(folder))


def _steps(arguments: argparse.Namespace, options: Options, folder: Path) -> dict[str, Any]:
    random = random_model(options)
    model = random.load(options)
    paths = _write(folder, model, arguments.rank)
    adapters = [_read(path, model) for path in paths]
    side = 8 if options.tiny else arguments.size // LATENT_SIDE
    works = [_work(model, index, side) for index in range(IMAGES)]
    kind = UNetKind(Pool([model]), IMAGES)

    def step(count: int, with_adapters: bool) -> Tensor:
        chosen = [
            _with(work, adapter if with_adapters else None) for work, adapter in zip(works, adapters, strict=True)
        ]
        outputs = kind.run(chosen[:count])
        return torch.cat([output for output in outputs if isinstance(output, Tensor)])

    theirs = _peft(random.weights(UNET_PREFIX, options.device, options.torch_dtype), model, load_file(paths[0]))
    sides: dict[str, Callable[[], object]] = {
        "plain": partial(step, 1, with_adapters=False),
        "adapted": partial(step, 1, with_adapters=True),
        "peft": partial(theirs, works[0]),
        "four_plain": partial(step, IMAGES, with_adapters=False),
        "four_adapted": partial(step, IMAGES, with_adapters=True),
        "ready": partial(_read, paths[0], model),
    }
    seconds = time_in_turn(sides, options, warm_up=1)
    return report(
        "adapters",
        options,
        rank=arguments.rank,
        mb=round(paths[0].stat().st_size / 1e6, 1),
        seconds={name: summary(values) for name, values in seconds.items()},
        one=ratio(seconds["adapted"], seconds["plain"]),
        four=ratio(seconds["four_adapted"], seconds["four_plain"]),
        peft=ratio(seconds["adapted"], seconds["peft"]),
        difference=relative_difference(step(1, with_adapters=True), theirs(works[0])),
    )


def _jobs(options: Options, folder: Path) -> dict[str, Any]:
    model, packages, name = served_model(options, full=False)
    paths = _write(folder, model, DEMO_RANK)
    size = model.info.native_size
    steps = 1 if options.tiny else 8
    engines = {
        batch: Engine([model], batch, packages=packages, library=Library(Catalogue({Kind.LORA: (folder,)})))
        for batch in (1, JOBS)
    }

    def generate(batch: int, with_adapters: bool) -> None:
        futures = []
        for job in range(JOBS):
            loras = (Lora(name=paths[job % IMAGES].stem),) if with_adapters else ()
            request = Request(PROMPT, seed=job, width=size, height=size, steps=steps, loras=loras)
            futures.append(engines[batch].submit(request))
        for future in futures:
            future.result()

    sides: dict[str, Callable[[], object]] = {
        "plain": partial(generate, JOBS, with_adapters=False),
        "adapted": partial(generate, JOBS, with_adapters=True),
        "one_by_one": partial(generate, 1, with_adapters=True),
    }
    seconds = time_in_turn(sides, options, warm_up=1)
    for engine in engines.values():
        engine.close()
    return report(
        "adapters",
        options,
        model=name,
        rank=DEMO_RANK,
        seconds={side: summary(values) for side, values in seconds.items()},
        jobs=ratio(seconds["adapted"], seconds["plain"]),
        rate_over_one_by_one=ratio(seconds["one_by_one"], seconds["adapted"]),
    )


def _write(folder: Path, model: StableDiffusion, rank: int) -> list[Path]:
    networks = model.networks
    names = Names.of(networks.unet, networks.text_encoder)
    paths = [folder / f"{index}.safetensors" for index in range(IMAGES)]
    for seed, path in enumerate(paths):
        lora = random_lora(names, networks.unet.config, rank, float(rank), size=SIZE, seed=seed)
        save_file({name: tensor.half() for name, tensor in lora.items()}, path)
    return paths


def _read(path: Path, model: StableDiffusion) -> Adapter:
    unet, text_encoder = model.networks.unet, model.networks.text_encoder
    return read_adapter(path, unet, text_encoder, model.device, unet.dtype)


def _work(model: StableDiffusion, seed: int, side: int) -> UNetWork:
    """A guided step of one image."""
    generator = torch.Generator().manual_seed(seed)
    width = model.networks.unet.config.context_dim
    states = torch.randn(2, 77, width, generator=generator).to(model.device, model.networks.unet.dtype)
    contexts = tuple(Context((seed, row), states[row : row + 1]) for row in range(2))
    latents = torch.randn(1, 4, side, side, generator=generator).to(model.device)
    return UNetWork(model.unet_key, latents, 500.0, contexts, (0, 0))


def _with(work: UNetWork, adapter: Adapter | None) -> UNetWork:
    applied = None if adapter is None else applied_to_unet(adapter, Strength())
    if applied is None:
        return work
    return UNetWork(
        work.network, work.latents, work.timestep, work.contexts, work.image_of_row, attached=Attachments((applied,))
    )


def _peft(weights: dict[str, Tensor], model: StableDiffusion, lora: dict[str, Tensor]) -> Callable[[UNetWork], Tensor]:
    """A step of diffusers' UNet with PEFT's layers, as its pipeline loads a kohya file."""
    from diffusers import StableDiffusionPipeline

    unet = reference_unet(weights, model.networks.unet.config)
    state, alphas = StableDiffusionPipeline.lora_state_dict(lora, unet_config=unet.config)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)

    def step(work: UNetWork) -> Tensor:
        states = torch.cat([context.states for context in work.contexts])
        latents = torch.cat([work.latents, work.latents]).to(states.dtype)
        output: Tensor = unet(latents, torch.tensor([work.timestep], device=latents.device), states).sample
        return output

    return step


if __name__ == "__main__":
    main()
