"""Charts as SVG text: bars by set and mode, curves, and win/tie/loss strips. No script, no font, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

#: Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933", "#332288", "#888888")
_TEXT: Final = 'font-family="sans-serif" font-size="11" fill="#333"'
_LEFT, _TOP, _HEIGHT, _BAR, _GAP = 44, 12, 180, 10, 14


def bars(values: Mapping[str, Mapping[str, float | None]], modes: Sequence[str]) -> str:
    """Groups of bars: {set: {mode: share of 1}}; a missing value leaves its place empty."""
    group = _BAR * len(modes) + _GAP
    width = _LEFT + group * len(values) + 8
    parts = [_grid(width)]
    for place, (name, by) in enumerate(values.items()):
        x = _LEFT + group * place + _GAP / 2
        for i, mode in enumerate(modes):
            value = by.get(mode)
            if value is not None:
                title = escape(f"{name}, {mode}: {100 * value:.1f}")
                top = _y(value)
                parts.append(
                    f'<rect x="{x + _BAR * i:.1f}" y="{top:.1f}" width="{_BAR - 1}" height="{_y(0) - top:.1f}" '
                    f'fill="{colour(i)}"><title>{title}</title></rect>'
                )
        middle = x + _BAR * len(modes) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{_y(0) + 12}" {_TEXT} text-anchor="end" '
            f'transform="rotate(-45 {middle:.1f} {_y(0) + 12})">{escape(name)}</text>'
        )
    longest = max((len(name) for name in values), default=0)
    return _svg(width, _y(0) + 24 + 5 * longest, parts)


def per_row(modes: int, width: float) -> int:
    """How many sets fit into a chart of bars; at least one."""
    return max(int((width - _LEFT - 8) // (_BAR * modes + _GAP)), 1)


def curves(lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """One line per mode over rank on a logarithmic axis: {mode: [(rank, share of 1)]}."""
    ranks = sorted({rank for points in lines.values() for rank, _ in points})
    step = 420 / max(len(ranks) - 1, 1)
    x = {rank: _LEFT + 10 + step * i for i, rank in enumerate(ranks)}
    parts = [_grid(_LEFT + 440)]
    parts += [f'<text x="{x[rank]:.1f}" y="{_y(0) + 16}" {_TEXT} text-anchor="middle">{rank}</text>' for rank in ranks]
    for i, (mode, points) in enumerate(lines.items()):
        path = " ".join(f"{x[rank]:.1f},{_y(value):.1f}" for rank, value in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour(i)}" stroke-width="2">'
            f"<title>{escape(mode)}</title></polyline>"
        )
    return _svg(_LEFT + 440, _y(0) + 24, parts)


def strip(wins: int, ties: int, losses: int, width: int = 220) -> str:
    """Queries won, tied and lost, side by side."""
    total = max(wins + ties + losses, 1)
    parts, x = [], 0.0
    for count, fill, word in ((wins, COLOURS[0], "better"), (ties, "#ddd", "equal"), (losses, COLOURS[5], "worse")):
        part = width * count / total
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="{part:.1f}" height="12" fill="{fill}">'
            f"<title>{count:,} {word}</title></rect>"
        )
        x += part
    return _svg(width, 12, parts)


def legend(modes: Sequence[str]) -> str:
    """The colours of the modes, as HTML."""
    keys = (f'<span><i style="background:{colour(i)}"></i>{escape(mode)}</span>' for i, mode in enumerate(modes))
    return f'<p class="legend">{" ".join(keys)}</p>'


def colour(i: int) -> str:
    """The colour of the i-th mode."""
    return COLOURS[i % len(COLOURS)]


def _grid(width: float) -> str:
    lines = []
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        lines.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{width:.0f}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" {_TEXT} text-anchor="end">{10 * tenth}</text>')
    return "".join(lines)


def _y(value: float) -> float:
    return _TOP + _HEIGHT * (1 - value)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{"".join(parts)}</svg>'
