"""Scenes of one or two plain shapes, the prompts that describe them, and their images."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128
OVERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 210, 50),
    "purple": (140, 70, 190),
    "orange": (245, 140, 40),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
# The base does not know these: the demo's LoRA adds them.
ADDED_COLOURS: dict[str, tuple[int, int, int]] = {"pink": (240, 130, 180), "teal": (30, 150, 150)}
ALL_COLOURS = COLOURS | ADDED_COLOURS
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
SIZES = ("", "small", "large")
RELATIONS = ("left of", "right of", "above", "below")

# (colour, shape) pairs that training never shows, neither alone nor beside another shape.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("blue", "heart"),
        ("green", "ring"),
        ("yellow", "triangle"),
        ("purple", "square"),
        ("orange", "circle"),
    }
)

# The same for the training of the LoRA.
ADDED_HELD_OUT_PAIRS = frozenset({("pink", "star"), ("pink", "square"), ("teal", "heart"), ("teal", "ring")})

# Radius of a single shape, as a fraction of the image's side.
RADII = {"": (0.22, 0.38), "small": (0.16, 0.21), "large": (0.36, 0.42)}


@dataclass(frozen=True)
class Figure:
    """A shape and its place: centre and radius are fractions of the image's side."""

    colour: str
    shape: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.3

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    prompt: str
    background: str
    figures: tuple[Figure, ...]

    @property
    def has_added_colour(self) -> bool:
        return not ADDED_COLOURS.keys().isdisjoint([self.background, *(figure.colour for figure in self.figures)])


def outline(shape: str) -> list[tuple[float, float]]:
    """The shape's outline as a polygon about the origin, y downwards, inside the unit circle."""
    if shape in ("circle", "ring"):
        return [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 96, endpoint=False)]
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)]
    if shape == "star":
        radii = (1.0, 0.45) * 5
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    if shape == "heart":
        turns = np.linspace(0, 2 * math.pi, 96, endpoint=False)
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.12,
            )
            for t in turns
        ]
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def coverage(figure: Figure, side: int = SIDE) -> np.ndarray:
    """How much of each pixel the figure covers: float32 (side, side) in 0..1."""
    fine = side * OVERSAMPLING
    mask = Image.new("L", (fine, fine), 0)
    pen = ImageDraw.Draw(mask)

    def place(points: list[tuple[float, float]], scale: float) -> list[tuple[float, float]]:
        return [((figure.x + u * scale) * fine, (figure.y + v * scale) * fine) for u, v in points]

    pen.polygon(place(outline(figure.shape), figure.radius), fill=255)
    if figure.shape == "ring":
        pen.polygon(place(outline("circle"), figure.radius / 2), fill=0)
    return np.asarray(mask.reduce(OVERSAMPLING), dtype=np.float32) / 255


def render(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The scene as an image: uint8 (side, side, 3)."""
    image = np.broadcast_to(np.array(ALL_COLOURS[scene.background], np.float32), (side, side, 3))
    for figure in scene.figures:
        alpha = coverage(figure, side)[:, :, None]
        image = image * (1 - alpha) + np.array(ALL_COLOURS[figure.colour], np.float32) * alpha
    return np.rint(image).astype(np.uint8)


def single_prompt(size: str, colour: str, shape: str, background: str) -> str:
    return f"a {size} {colour} {shape} on a {background} background".replace("  ", " ")


def pair_prompt(first: Figure, relation: str, second: Figure, background: str) -> str:
    return f"a {first.colour} {first.shape} {relation} a {second.colour} {second.shape} on a {background} background"


def single_scene(rng: random.Random, size: str, colour: str, shape: str, background: str) -> Scene:
    """One shape near the middle, its place and radius drawn from `rng`."""
    radius = rng.uniform(*RADII[size])
    slack = min(0.1, 0.47 - radius)
    figure = Figure(colour, shape, 0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack), radius)
    return Scene(single_prompt(size, colour, shape, background), background, (figure,))


def pair_scene(rng: random.Random, first: Figure, relation: str, second: Figure, background: str) -> Scene:
    """Two shapes, each in its own half of the image, places and radii drawn from `rng`."""
    near, far = rng.uniform(0.24, 0.27), rng.uniform(0.73, 0.76)
    along = {"left of": (near, far), "above": (near, far), "right of": (far, near), "below": (far, near)}[relation]
    placed = []
    for figure, position in zip((first, second), along, strict=True):
        across = 0.5 + rng.uniform(-0.08, 0.08)
        x, y = (position, across) if relation in ("left of", "right of") else (across, position)
        placed.append(replace(figure, x=x, y=y, radius=rng.uniform(0.16, 0.21)))
    return Scene(pair_prompt(first, relation, second, background), background, tuple(placed))


@cache
def unseen_singles() -> frozenset[tuple[str, str, str, str]]:
    """(size, colour, shape, background) of the one-shape prompts that training leaves out: one in ten.

    The held-out pairs are not among them; they are scored separately.
    """
    combinations = [
        (size, colour, shape, background)
        for size, colour, shape, background in product(SIZES, COLOURS, SHAPES, COLOURS)
        if colour != background and (colour, shape) not in HELD_OUT_PAIRS
    ]
    return frozenset(random.Random(1).sample(combinations, len(combinations) // 10))


def unseen_single(size: str, colour: str, shape: str, background: str) -> bool:
    """Whether training leaves out this prompt of one shape."""
    if ADDED_COLOURS.keys().isdisjoint([colour, background]):
        return (size, colour, shape, background) in unseen_singles()
    return random.Random(f"{size} {colour} {shape} {background}").random() < 0.1


def unseen_pair(first: Figure, relation: str, second: Figure) -> bool:
    """Whether training leaves out this arrangement of two shapes: about one in ten of them."""
    return random.Random(f"{first.pair} {relation} {second.pair}").random() < 0.1


def random_figure(rng: random.Random, background: str, colours: Iterable[str] = COLOURS) -> Figure:
    """A figure that training may show on this background."""
    while True:
        figure = Figure(rng.choice([c for c in colours if c != background]), rng.choice(SHAPES))
        if figure.pair not in HELD_OUT_PAIRS | ADDED_HELD_OUT_PAIRS:
            return figure


def training_scene(rng: random.Random, colours: Iterable[str] = COLOURS) -> Scene:
    """A scene of the training set; one shape is as frequent as two."""
    choices = list(colours)
    while True:
        background = rng.choice(choices)
        first, second = random_figure(rng, background, choices), random_figure(rng, background, choices)
        if rng.random() < 0.5:
            size = rng.choice(SIZES)
            if not unseen_single(size, *first.pair, background):
                return single_scene(rng, size, *first.pair, background)
        else:
            relation = rng.choice(RELATIONS)
            if not unseen_pair(first, relation, second):
                return pair_scene(rng, first, relation, second, background)


def added_scene(rng: random.Random) -> Scene:
    """A scene of the LoRA's training set: at least one of its colours is an added one."""
    while True:
        scene = training_scene(rng, ALL_COLOURS)
        if scene.has_added_colour:
            return scene
