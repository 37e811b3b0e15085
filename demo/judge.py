"""Detect what an image shows, and count how often the demo model follows its prompt: `python -m demo.judge`."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from demo.dataset import (
    ALL_COLOURS,
    COLOURS,
    HELD_OUT_PAIRS,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Figure,
    Scene,
    coverage,
    pair_scene,
    random_figure,
    single_scene,
    unseen_pair,
    unseen_singles,
)
from sd_core.catalogue import Catalogue, folders_in
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.volume import Library

TEMPLATE_SIDE = 48
MIN_AREA = 1 / 250  # of the image: smaller parts are ignored
MIN_OVERLAP = 0.75  # intersection over union with the nearest shape


@dataclass(frozen=True)
class Detected:
    """What an image shows: the background's colour, and the figures, in no particular order."""

    background: str
    figures: tuple[Figure, ...]


def nearest_colour(rgb: np.ndarray) -> str:
    return min(ALL_COLOURS, key=lambda name: float(np.square(np.asarray(ALL_COLOURS[name]) - rgb).sum()))


def components(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The connected parts of a boolean (H, W) mask, each as a mask of its own."""
    left = mask.copy()
    while left.any():
        stack = [tuple(int(i) for i in np.argwhere(left)[0])]
        left[stack[0]] = False
        part = np.zeros_like(mask)
        while stack:
            y, x = stack.pop()
            part[y, x] = True
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < mask.shape[0] and 0 <= nx < mask.shape[1] and left[ny, nx]:
                    left[ny, nx] = False
                    stack.append((ny, nx))
        yield part


def boxed(mask: np.ndarray) -> np.ndarray:
    """The mask in its bounding box, stretched to TEMPLATE_SIDE on each side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    resized = Image.fromarray(crop.astype(np.uint8) * 255).resize((TEMPLATE_SIDE, TEMPLATE_SIDE))
    return np.asarray(resized) > 127


@cache
def templates() -> dict[str, np.ndarray]:
    return {shape: boxed(coverage(Figure("black", shape, radius=0.45), 256) > 0.5) for shape in SHAPES}


def name_shape(mask: np.ndarray) -> str:
    """The shape whose template the mask overlaps most, or "blob" if no overlap reaches MIN_OVERLAP."""
    found = boxed(mask)
    overlaps = {shape: (found & known).sum() / (found | known).sum() for shape, known in templates().items()}
    best = max(overlaps, key=lambda shape: float(overlaps[shape]))
    return best if overlaps[best] >= MIN_OVERLAP else "blob"


def detect(image: np.ndarray) -> Detected:
    """uint8 (H, W, 3) -> what it shows."""
    height, width = image.shape[:2]
    rgb = image.astype(np.float64)
    border = np.concatenate(
        [rgb[:3].reshape(-1, 3), rgb[-3:].reshape(-1, 3), rgb[:, :3].reshape(-1, 3), rgb[:, -3:].reshape(-1, 3)]
    )
    ground = np.median(border, axis=0)
    figures = []
    for part in components(np.sqrt(np.square(rgb - ground).sum(axis=2)) > 60):
        if part.sum() < MIN_AREA * part.size:
            continue
        colour = np.median(rgb[part], axis=0)
        # The edge of a figure is where its colour and the ground's are mixed half and half.
        inside = part & ((rgb - ground) @ (colour - ground) > np.square(colour - ground).sum() / 2)
        shape = name_shape(inside) if inside.any() else "blob"
        y, x = np.argwhere(part).mean(axis=0)
        radius = float(np.sqrt(part.sum() / np.pi)) / width
        figures.append(Figure(nearest_colour(colour), shape, float(x) / width, float(y) / height, radius))
    return Detected(nearest_colour(ground), tuple(figures))


def shows(detected: Detected, scene: Scene) -> bool:
    """Whether an image has the scene's background and exactly its figures, each in its place."""
    if detected.background != scene.background or len(detected.figures) != len(scene.figures):
        return False
    if len(scene.figures) == 1:
        return detected.figures[0].pair == scene.figures[0].pair
    first, second = scene.figures
    axis = "x" if abs(first.x - second.x) > abs(first.y - second.y) else "y"
    wanted = sorted(scene.figures, key=lambda figure: float(getattr(figure, axis)))
    found = sorted(detected.figures, key=lambda figure: float(getattr(figure, axis)))
    apart = float(getattr(found[1], axis)) - float(getattr(found[0], axis)) > 0.2
    return apart and [figure.pair for figure in found] == [figure.pair for figure in wanted]


def unseen_scenes(count: int) -> dict[str, list[Scene]]:
    """`count` scenes per group, whose prompts are not in the training set."""
    rng = random.Random(2)
    singles = [single_scene(rng, *words) for words in rng.sample(sorted(unseen_singles()), count)]
    held_out = [
        single_scene(rng, rng.choice(SIZES), *pair, rng.choice([c for c in COLOURS if c != pair[0]]))
        for pair in (sorted(HELD_OUT_PAIRS) * count)[:count]
    ]
    pairs: list[Scene] = []
    while len(pairs) < count:
        background, relation = rng.choice(list(COLOURS)), rng.choice(RELATIONS)
        first, second = random_figure(rng, background), random_figure(rng, background)
        if unseen_pair(first, relation, second):
            pairs.append(pair_scene(rng, first, relation, second, background))
    return {"one shape": singles, "held-out pair": held_out, "two shapes": pairs}


@dataclass(frozen=True)
class Score:
    right: int
    images: int
    percent: float

    @classmethod
    def of(cls, right: list[bool]) -> "Score":
        return cls(sum(right), len(right), round(100 * sum(right) / len(right), 1))


def request_of(scene: Scene, seed: int) -> Request:
    """A request for the scene, with the default sampler, steps and guidance."""
    return Request(scene.prompt, seed=seed, width=SIDE, height=SIDE)


def is_right(image: np.ndarray, scene: Scene) -> bool:
    return shows(detect(image), scene)


def judge(engine: Engine, count: int, sheet: Path | None = None) -> dict[str, Score]:
    """Score `count` images per group, with the default sampler, steps and guidance; `sheet` is a PNG of all."""
    return judge_groups(engine, unseen_scenes(count), sheet=sheet)


def judge_groups(
    engine: Engine,
    groups: dict[str, list[Scene]],
    request_of: Callable[[Scene, int], Request] = request_of,
    is_right: Callable[[np.ndarray, Scene], bool] = is_right,
    sheet: Path | None = None,
) -> dict[str, Score]:
    """Score one image per scene, its seed being the scene's place in its group; `sheet` is a PNG of all."""
    scores, rows = {}, []
    for group, scenes in groups.items():
        futures = [engine.submit(request_of(scene, seed)) for seed, scene in enumerate(scenes)]
        images = [future.result().images[0] for future in futures]
        right = [is_right(image, scene) for image, scene in zip(images, scenes, strict=True)]
        scores[group] = Score.of(right)
        rows += [np.concatenate(images[start : start + 10], axis=1) for start in range(0, len(images) - 9, 10)]
        for index in (index for index, good in enumerate(right) if not good):
            print(f"wrong: {scenes[index].prompt!r} (seed {index}) shows {detect(images[index])}", flush=True)
    if sheet is not None and rows:
        Image.fromarray(np.concatenate(rows)).save(sheet)
    return scores


def demo_engine(weights: Path, dtype: str, max_jobs: int) -> Engine:
    """The demo model on the CPU, with the adapters beside it."""
    model = StableDiffusion.load(weights / "demo.safetensors", weights, device="cpu", dtype=dtype)
    library = Library(Catalogue(folders_in(weights)))
    return Engine([model], max_batch=8, max_jobs=max_jobs, library=library)


def command(
    description: str, judge: Callable[[Engine, int, Path | None], dict[str, Score]], max_count: int | None = None
) -> None:
    """Run a judge from the command line and print its scores as JSON."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights")
    at_most = f", at most {max_count}" if max_count else ""
    parser.add_argument("--count", type=int, default=60, help=f"images per group{at_most}")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--sheet", type=Path, help="write all images to this PNG")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.count > (max_count or arguments.count):
        parser.error(f"--count is at least 1{at_most}")
    # A judge may ask for several images a case.
    engine = demo_engine(arguments.weights, arguments.dtype, 4 * arguments.count)
    scores = judge(engine, arguments.count, arguments.sheet)
    engine.close()
    print(json.dumps({group: asdict(score) for group, score in scores.items()}, indent=1))


if __name__ == "__main__":
    # As many one-shape prompts as training left out.
    command(__doc__, judge, len(unseen_singles()))
