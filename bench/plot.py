"""A line chart over a few positions, as an SVG that browsers and code hosts can show."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
COLORS = ("#0b62a4", "#c0392b", "#6b7a1e", "#7d3c98")
MAX_TICKS = 6


def line_plot(
    title: str, x_label: str, y_label: str, positions: Sequence[object], lines: Mapping[str, Sequence[float]]
) -> str:
    """One line per name over evenly spaced positions; the y axis begins at zero."""
    highest = max((value for values in lines.values() for value in values), default=0.0)
    tick = _round_up(highest / MAX_TICKS or 1.0)
    ticks = max(1, math.ceil(highest / tick))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(positions) - 1)

    def x(index: int) -> float:
        return round(LEFT + index * step, 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / (ticks * tick) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, 'text-anchor="middle" font-size="15"'),
        _text(WIDTH / 2, HEIGHT - 10, x_label, 'text-anchor="middle"'),
        _text(14, HEIGHT / 2, y_label, f'text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2:g})"'),
    ]
    for value in (number * tick for number in range(ticks + 1)):
        parts.append(f'<path d="M{LEFT} {y(value)}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.3g}", 'text-anchor="end"'))
    for index, position in enumerate(positions):
        parts.append(_text(x(index), HEIGHT - BOTTOM + 18, str(position), 'text-anchor="middle"'))
    for number, (name, values) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        points = " ".join(f"{x(index)},{y(value)}" for index, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.extend(f'<circle cx="{x(i)}" cy="{y(value)}" r="3" fill="{color}"/>' for i, value in enumerate(values))
        parts.append(_text(LEFT + 10, TOP + 14 + 16 * number, name, f'fill="{color}"'))
    return "\n".join([*parts, "</svg>\n"])


def _round_up(value: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= value)


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{escape(text)}</text>'
