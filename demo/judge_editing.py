"""How often an edited prompt ends as its second word says, in the layout of its first: `python -m demo.judge_editing`.

`a [red:blue:0.3] star on a white background` asks for a red star during the first 30 % of the steps, in which the
layout is decided, and for a blue one after that. The image is right if it shows what the blue prompt describes where
the red prompt alone, with the same seed, places it.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from demo.dataset import COLOURS, SHAPES, SIDE, Scene, single_scene
from demo.judge import Score, command, detect, shows
from sd_core.engine.engine import Engine
from sd_core.request import Request

SWITCH = 0.3  # of the steps
MIN_OVERLAP = 0.5  # intersection over union of the edited shape and the first prompt's
MAX_DISTANCE = 150  # of a pixel's red, green and blue from the shape's colour, added up


@dataclass(frozen=True)
class Case:
    """A prompt before and after the edit, as scenes, and the two in one."""

    first: Scene
    second: Scene
    seed: int

    @property
    def prompts(self) -> tuple[str, str, str]:
        """The first prompt, the edited one, the second one."""
        before, after = (scene.figures[0].colour for scene in (self.first, self.second))
        edited = self.first.prompt.replace(f" {before} ", f" [{before}:{after}:{SWITCH}] ", 1)
        return self.first.prompt, edited, self.second.prompt


def red_to_blue(rng: random.Random, seed: int) -> Case:
    background, shape = rng.choice(["white", "black", "yellow"]), list(SHAPES)[seed % len(SHAPES)]
    red, blue = (single_scene(rng, "", colour, shape, background) for colour in ("red", "blue"))
    return Case(red, blue, seed)


def images_of(engine: Engine, cases: list[Case]) -> list[list[np.ndarray]]:
    """For each case the images of its three prompts, from the same noise."""
    futures = [
        [engine.submit(Request(prompt, seed=case.seed, width=SIDE, height=SIDE)) for prompt in case.prompts]
        for case in cases
    ]
    return [[future.result().images[0] for future in each] for each in futures]


def overlap(first: np.ndarray, first_colour: str, second: np.ndarray, second_colour: str) -> float:
    """Intersection over union of what has each colour in two images (H, W, 3)."""
    one, other = _of_colour(first, first_colour), _of_colour(second, second_colour)
    return float((one & other).sum() / max(1, (one | other).sum()))


def judge(engine: Engine, count: int, sheet: Path | None = None) -> dict[str, Score]:
    """Score `count` edited prompts with the default sampler, steps and guidance; `sheet` is a PNG of all images."""
    rng = random.Random(7)
    cases = [red_to_blue(rng, index) for index in range(count)]
    images = images_of(engine, cases)
    ends = right = 0
    overlaps, unedited = list[float](), list[float]()
    for case, (first, edited, second) in zip(cases, images, strict=True):
        (before,), (after,) = case.first.figures, case.second.figures
        is_second = shows(detect(edited), case.second)
        overlaps.append(overlap(first, before.colour, edited, after.colour))
        unedited.append(overlap(first, before.colour, second, after.colour))
        ends += is_second
        right += is_second and overlaps[-1] >= MIN_OVERLAP
        if not is_second:
            print(f"wrong: {case.prompts[1]!r} (seed {case.seed}) shows {detect(edited)}", flush=True)
    medians = np.median(overlaps), np.median(unedited)
    print("median overlap with the first prompt's shape: {:.2f}; of the second prompt alone: {:.2f}".format(*medians))
    if sheet is not None:
        Image.fromarray(np.concatenate([np.concatenate(each, axis=1) for each in images])).save(sheet)
    return {
        "ends as the second prompt": Score(ends, count, round(100 * ends / count, 1)),
        "in the layout of the first": Score(right, count, round(100 * right / count, 1)),
    }


def _of_colour(image: np.ndarray, colour: str) -> np.ndarray:  # (H, W, 3) -> (H, W)
    mask: np.ndarray = np.abs(image.astype(int) - np.asarray(COLOURS[colour])).sum(axis=2) < MAX_DISTANCE
    return mask


if __name__ == "__main__":
    command(__doc__, judge)
