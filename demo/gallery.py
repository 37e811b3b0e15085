"""Generate the images of docs/gallery.md with the demo model: `python -m demo.gallery [--out docs/gallery]`.

Each function is one image of the page, in a file of the function's name.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from demo.dataset import SIDE, render
from demo.judge import demo_engine, request_of, unseen_scenes
from demo.judge_control import controlled_request, controlled_scenes
from demo.judge_editing import images_of, red_to_blue
from demo.judge_inpaint import Case, border, one_of_two, one_shape
from demo.judge_lora import adapted_request
from demo.judge_lora import unseen_scenes as added_scenes
from demo.train_controlnet import edges
from sd_core.engine.engine import Engine
from sd_core.nested import Hires
from sd_core.request import Request

WEIGHTS = Path(__file__).parent / "weights"
OUT = Path(__file__).parents[1] / "docs" / "gallery"
COLUMNS, GAP = 6, 4
MAX_JOBS = 64
HIDDEN = 127  # the gray of pixels that are to be repainted

Grid = Sequence[Sequence[np.ndarray]]
"""Rows of images, uint8 (H, W, 3) each."""


def prompts(engine: Engine) -> Grid:
    scenes = [scene for group in unseen_scenes(COLUMNS).values() for scene in group]
    images = _generated(engine, [request_of(scene, seed) for seed, scene in enumerate(scenes)])
    return [images[start : start + COLUMNS] for start in range(0, len(images), COLUMNS)]


def editing(engine: Engine) -> Grid:
    """Above the first prompt, below the second, between them the edit from one to the other."""
    rng = random.Random(7)
    columns = images_of(engine, [red_to_blue(rng, seed) for seed in range(COLUMNS)])
    return list(zip(*columns, strict=True))


def inpainting(engine: Engine) -> Grid:
    return _repainted(engine, one_shape) + _repainted(engine, one_of_two)


def outpainting(engine: Engine) -> Grid:
    return _repainted(engine, border)


def hires(engine: Engine) -> Grid:
    """Above a resize to twice the size, below a second pass."""
    scenes = unseen_scenes(COLUMNS // 2)["two shapes"]
    plain = [request_of(scene, seed) for seed, scene in enumerate(scenes)]
    second = Hires(upscaler="lanczos", strength=0.3, steps=8)
    resized = [
        np.asarray(Image.fromarray(image).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS))
        for image in _generated(engine, plain)
    ]
    return [resized, _generated(engine, [replace(request, hires=second) for request in plain])]


def loras(engine: Engine) -> Grid:
    """Above without the LoRA, below with it; all in one batch."""
    scenes = added_scenes(COLUMNS)["one shape"]
    requests = [make(scene, seed) for make in (request_of, adapted_request) for seed, scene in enumerate(scenes)]
    images = _generated(engine, requests)
    return [images[:COLUMNS], images[COLUMNS:]]


def controlnets(engine: Engine) -> Grid:
    """Above the edge maps, below what the ControlNet makes of them."""
    scenes = controlled_scenes(COLUMNS // 2)
    chosen = [*scenes["one shape"], *scenes["two shapes"]]
    images = _generated(engine, [controlled_request(scene, seed) for seed, scene in enumerate(chosen)])
    return [[edges(render(scene)) for scene in chosen], images]


FIGURES: tuple[Callable[[Engine], Grid], ...] = (
    *(prompts, editing, inpainting, outpainting, hires),
    *(loras, controlnets),
)


def _generated(engine: Engine, requests: Sequence[Request]) -> list[np.ndarray]:
    futures = [engine.submit(request) for request in requests]
    return [future.result().images[0] for future in futures]


def _repainted(engine: Engine, case_of: Callable[[random.Random, int], Case]) -> list[list[np.ndarray]]:
    """Above the images as they are sent, below what becomes of them."""
    rng = random.Random(5)
    cases = [case_of(rng, seed) for seed in range(COLUMNS)]
    sent = [np.where(case.kept[..., None], case.whole, np.uint8(HIDDEN)) for case in cases]
    futures = [engine.submit(case.request) for case in cases]
    return [sent, [future.result().images[0] for future in futures]]


def sheet(grid: Grid) -> Image.Image:
    """The images of a grid, all of one size, with white between them."""
    height, width = grid[0][0].shape[:2]
    rows, columns = len(grid), len(grid[0])
    canvas = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for y, row in enumerate(grid):
        for x, image in enumerate(row):
            canvas.paste(Image.fromarray(image), (x * (width + GAP), y * (height + GAP)))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    engine = demo_engine(WEIGHTS, "fp32", MAX_JOBS)
    for figure in FIGURES:
        sheet(figure(engine)).save(arguments.out / f"{figure.__name__}.png", optimize=True)
    engine.close()


if __name__ == "__main__":
    main()
