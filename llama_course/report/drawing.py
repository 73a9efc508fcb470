"Drawings of ideas, as SVG in the page's own colour: readable on a light and on a dark page."

from html import escape

BLUE, ORANGE, GREY = "#1f77b4", "#ff7f0e", "#888888"


def label(
    x: float,
    y: float,
    text: str,
    size: float = 14,
    anchor: str = "middle",  # start, middle or end
    weight: str = "normal",
    mono: bool = False,
) -> str:
    "A line of text whose baseline is at y."
    family = ' font-family="monospace"' if mono else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{family}'
        f' font-weight="{weight}" fill="currentColor" stroke="none">{escape(text)}</text>'
    )


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    color: str = BLUE,
    fill: float = 0.12,  # how strong the colour is inside
    *lines: str,  # of text, in the middle
    size: float = 14,
) -> str:
    "A rectangle with round corners, perhaps with text in it."
    frame = (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
        f' fill="{color}" fill-opacity="{fill:g}"/>'
    )
    top = y + height / 2 + size * 0.35 - (len(lines) - 1) * size * 0.65
    words = [label(x + width / 2, top + 1.3 * size * i, line, size) for i, line in enumerate(lines)]
    return frame + "".join(words)


def arrow(path: str, dashed: bool = False) -> str:
    "A line along an SVG path, with a tip at its end."
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="{path}" fill="none"{dashes} marker-end="url(#tip)"/>'


class Drawing(str):
    "An SVG, which a notebook shows as the picture."

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return "<a drawing>"


def drawing(
    width: float,
    height: float,
    words: str,  # what is seen, for those who do not see it
    *parts: str,
) -> Drawing:
    "The parts as one picture, as wide as the page or narrower."
    tip = '<path d="M0 0L8 4L0 8z" fill="currentColor" stroke="none"/>'
    return Drawing(
        f'<svg role="img" viewBox="0 0 {width:g} {height:g}" stroke="currentColor" fill="none"'
        f' style="width:100%;max-width:{width / 15:.0f}rem"><title>{escape(words)}</title>'
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4"'
        f' orient="auto">{tip}</marker></defs>{"".join(parts)}</svg>'
    )
