"""How often the demo model repaints what a mask or a border asks for: `python -m demo.judge_inpaint`.

An image is right if it shows the scene of its prompt as a whole, and if every kept pixel is the sent one.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from demo.dataset import (
    COLOURS,
    RELATIONS,
    SIDE,
    SIZES,
    Figure,
    Scene,
    coverage,
    pair_scene,
    random_figure,
    render,
    single_prompt,
    single_scene,
)
from demo.judge import Score, command, detect, shows
from sd_core.engine.engine import Engine
from sd_core.nested import Outpaint
from sd_core.request import Request

MARGIN = 1.5  # the mask's size relative to the shape that it hides
MASK_BLUR = 1  # pixels: the default for images of 512, in proportion


@dataclass(frozen=True)
class Case:
    """A request, the scene that its prompt describes, and which pixels (H, W) of `whole` (H, W, 3) it must keep."""

    request: Request
    scene: Scene
    whole: np.ndarray
    kept: np.ndarray

    def is_right(self, image: np.ndarray) -> bool:
        return self.keeps(image) and shows(detect(image), self.scene)

    def keeps(self, image: np.ndarray) -> bool:
        return image.shape == self.whole.shape and np.array_equal(image[self.kept], self.whole[self.kept])


def one_shape(rng: random.Random, seed: int) -> Case:
    """The one shape of an image becomes another of another colour."""
    background, size = rng.choice(list(COLOURS)), rng.choice(SIZES)
    old, new = _two_unlike(rng, background)
    before = single_scene(rng, size, *old.pair, background)
    (placed,) = before.figures
    prompt = single_prompt(size, *new.pair, background)
    after = Scene(prompt, background, (replace(new, x=placed.x, y=placed.y, radius=placed.radius),))
    return _repainted(before, after, placed, seed)


def one_of_two(rng: random.Random, seed: int) -> Case:
    """One of an image's two shapes becomes another of another colour, the other one stays."""
    background, relation = rng.choice(list(COLOURS)), rng.choice(RELATIONS)
    old, new = _two_unlike(rng, background)
    other = random_figure(rng, background)
    before = pair_scene(rng, old, relation, other, background)
    after = pair_scene(rng, new, relation, other, background)
    first, second = before.figures
    placed = replace(new, x=first.x, y=first.y, radius=first.radius)
    return _repainted(before, replace(after, figures=(placed, second)), first, seed)


def border(rng: random.Random, seed: int) -> Case:
    """Half an image with its shape grows to the whole, with the other shape in the new half."""
    background, relation = rng.choice(list(COLOURS)), rng.choice(RELATIONS)
    scene = pair_scene(rng, random_figure(rng, background), relation, random_figure(rng, background), background)
    whole, half = render(scene), SIDE // 2
    grows, (rows, columns) = {
        "left of": (Outpaint(right=half), (slice(None), slice(half))),
        "right of": (Outpaint(left=half), (slice(None), slice(half, None))),
        "above": (Outpaint(bottom=half), (slice(half), slice(None))),
        "below": (Outpaint(top=half), (slice(half, None), slice(None))),
    }[relation]
    image, kept = np.ascontiguousarray(whole[rows, columns]), np.zeros((SIDE, SIDE), bool)
    kept[rows, columns] = True
    height, width = image.shape[:2]
    request = Request(scene.prompt, seed=seed, width=width, height=height, image=image, outpaint=grows, strength=1.0)
    return Case(request, scene, whole, kept)


GROUPS: dict[str, Callable[[random.Random, int], Case]] = {
    "one shape repainted": one_shape,
    "one of two shapes repainted": one_of_two,
    "half an image outpainted": border,
}


def _two_unlike(rng: random.Random, background: str) -> tuple[Figure, Figure]:
    """Two figures of different shapes and colours."""
    old = random_figure(rng, background)
    while True:
        new = random_figure(rng, background)
        if new.shape != old.shape and new.colour != old.colour:
            return old, new


def _repainted(before: Scene, after: Scene, hidden: Figure, seed: int) -> Case:
    image = render(before)
    square = replace(hidden, shape="square", radius=hidden.radius * MARGIN)
    mask = np.where(coverage(square) > 0, 255, 0).astype(np.uint8)
    request = Request(
        after.prompt, seed=seed, width=SIDE, height=SIDE, image=image, mask=mask, strength=1.0, mask_blur=MASK_BLUR
    )
    return Case(request, after, image, mask == 0)


def judge(engine: Engine, count: int, sheet: Path | None = None) -> dict[str, Score]:
    """Repaint `count` images a group with the default sampler, steps and guidance; `sheet` keeps them as one PNG, each
    below the image that it was made from."""
    scores, rows = {}, []
    for group, case_of in GROUPS.items():
        rng = random.Random(5)
        cases = [case_of(rng, index) for index in range(count)]
        futures = [engine.submit(case.request) for case in cases]
        images = [future.result().images[0] for future in futures]
        assert all(case.keeps(image) for case, image in zip(cases, images, strict=True)), "kept pixels changed"
        right = [case.is_right(image) for case, image in zip(cases, images, strict=True)]
        scores[group] = Score.of(right)
        for start in range(0, count - count % 10, 10):
            sent = [np.where(case.kept[..., None], case.whole, 127) for case in cases[start : start + 10]]
            rows += [np.concatenate(row, axis=1).astype(np.uint8) for row in (sent, images[start : start + 10])]
        for index in (index for index, good in enumerate(right) if not good):
            print(f"wrong: {cases[index].scene.prompt!r} (seed {index}) shows {detect(images[index])}", flush=True)
    if sheet is not None and rows:
        Image.fromarray(np.concatenate(rows)).save(sheet)
    return scores


if __name__ == "__main__":
    command(__doc__, judge)
