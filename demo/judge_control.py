"""Count how often the demo's ControlNet puts shapes where an edge map says: `python -m demo.judge_control`.

The prompt names colours and shapes, the edge map alone says where they lie and how large they are.
"""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from demo.dataset import Scene, render
from demo.judge import Score, command, detect, judge_groups, request_of, shows, unseen_scenes
from demo.train_controlnet import CONTROLNET, edges, placed
from sd_core.additions import ControlNet
from sd_core.engine.engine import Engine
from sd_core.request import Request

MAX_SHIFT = 0.05  # of a shape's middle, as a fraction of the image's side
MAX_GROWTH = 1.25  # of a shape's size, and of its inverse


def controlled_scenes(count: int) -> dict[str, list[Scene]]:
    """`count` scenes per group, whose prompts are not in the training sets, with shapes at places of their own."""
    rng = random.Random(11)
    groups = unseen_scenes(count)
    singles = [*groups["one shape"][: count - count // 3], *groups["held-out pair"][: count // 3]]
    return {
        "one shape": [placed(rng, scene) for scene in singles],
        "two shapes": [placed(rng, scene) for scene in groups["two shapes"]],
    }


def controlled_request(scene: Scene, seed: int) -> Request:
    hint = ControlNet(model=CONTROLNET.stem, image=edges(render(scene)))
    return replace(request_of(scene, seed), controlnets=(hint,))


def in_place(image: np.ndarray, scene: Scene) -> bool:
    """Whether an image shows the scene with each figure where it is in the scene, and as large."""
    found, true = detect(image), detect(render(scene))
    if not shows(found, scene):
        return False
    ordered = (sorted(each.figures, key=lambda figure: (figure.pair, figure.x)) for each in (found, true))
    return all(
        abs(one.x - other.x) <= MAX_SHIFT
        and abs(one.y - other.y) <= MAX_SHIFT
        and 1 / MAX_GROWTH <= one.radius / other.radius <= MAX_GROWTH
        for one, other in zip(*ordered, strict=True)
    )


def judge(engine: Engine, count: int, sheet: Path | None = None) -> dict[str, Score]:
    """Score `count` images per group with the ControlNet, and as many of the same prompts without it."""
    groups = controlled_scenes(count)
    scores = judge_groups(engine, groups, controlled_request, in_place, sheet)
    plain = judge_groups(engine, groups, request_of, in_place)
    return scores | {f"{group}, without": score for group, score in plain.items()}


if __name__ == "__main__":
    command(__doc__, judge)
