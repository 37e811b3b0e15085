"""Count how often the demo's LoRA generates what its prompts say: `python -m demo.judge_lora`.

Each prompt names pink or teal, which the base alone does not know.
"""

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

from demo.dataset import (
    ADDED_COLOURS,
    ADDED_HELD_OUT_PAIRS,
    ALL_COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    pair_scene,
    random_figure,
    single_scene,
    unseen_pair,
    unseen_single,
)
from demo.judge import Score, command, judge_groups, request_of
from demo.train_lora import LORA
from sd_core.additions import Lora
from sd_core.engine.engine import Engine
from sd_core.request import Request


def is_unseen(size: str, colour: str, shape: str, background: str) -> bool:
    """Whether the words show an added colour and training never showed their prompt."""
    if colour == background or ADDED_COLOURS.keys().isdisjoint({colour, background}):
        return False
    return unseen_single(size, colour, shape, background)


def unseen_scenes(count: int) -> dict[str, list[Scene]]:
    """`count` scenes per group that show an added colour and whose prompts the LoRA's training never showed."""
    rng = random.Random(3)

    every = [words for words in product(SIZES, ALL_COLOURS, SHAPES, ALL_COLOURS) if is_unseen(*words)]
    rng.shuffle(every)
    singles = [single_scene(rng, *words) for words in (every * count)[:count]]  # each before any comes again
    held_out = [
        single_scene(rng, rng.choice(SIZES), *pair, rng.choice([c for c in ALL_COLOURS if c != pair[0]]))
        for pair in (sorted(ADDED_HELD_OUT_PAIRS) * count)[:count]
    ]
    pairs: list[Scene] = []
    while len(pairs) < count:
        background, relation = rng.choice(list(ALL_COLOURS)), rng.choice(RELATIONS)
        first, second = (random_figure(rng, background, ALL_COLOURS) for _ in range(2))
        scene = pair_scene(rng, first, relation, second, background)
        if unseen_pair(first, relation, second) and scene.has_added_colour:
            pairs.append(scene)
    return {"one shape": singles, "held-out pair": held_out, "two shapes": pairs}


def adapted_request(scene: Scene, seed: int) -> Request:
    return replace(request_of(scene, seed), loras=(Lora(name=LORA.stem),))


def judge(engine: Engine, count: int, sheet: Path | None = None) -> dict[str, Score]:
    """Score `count` images per group with the LoRA, and as many of the same prompts without it."""
    groups = unseen_scenes(count)
    scores = judge_groups(engine, groups, adapted_request, sheet=sheet)
    plain = judge_groups(engine, groups)
    return scores | {f"{group}, without": score for group, score in plain.items()}


if __name__ == "__main__":
    command(__doc__, judge)
