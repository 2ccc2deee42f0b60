"""Draw boxes and arrows as SVG that is legible on light and dark pages, with no tool but text.

A picture brings its own background, which follows the reader's preference, so that it does not
depend on that of the page. Coordinates are pixels; a box is named by its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from attrs import define, field

__all__ = ["Drawing", "Point"]

Point = tuple[float, float]

_STYLE: Final = """\
text { font: 13px "DejaVu Sans", Verdana, sans-serif; fill: #1f2328; text-anchor: middle; }
text.code { font: 12px "DejaVu Sans Mono", Menlo, monospace; }
text.note { fill: #57606a; font-size: 12px; }
text.left { text-anchor: start; }
.page { fill: #ffffff; }
.box { fill: #f6f8fa; stroke: #57606a; stroke-width: 1.2; }
.good { fill: #dafbe1; stroke: #1a7f37; }
.bad { fill: #ffebe9; stroke: #cf222e; }
.other { fill: #fff8c5; stroke: #9a6700; }
.group { fill: none; stroke: #57606a; stroke-dasharray: 5 4; }
.line { fill: none; stroke: #57606a; stroke-width: 1.4; }
.dashed { stroke-dasharray: 5 4; }
.tip { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  text.note { fill: #a5afb9; }
  .page { fill: #0d1117; }
  .box { fill: #161b22; stroke: #8b949e; }
  .good { fill: #12361f; stroke: #3fb950; }
  .bad { fill: #43191b; stroke: #f85149; }
  .other { fill: #3b2e0a; stroke: #d29922; }
  .group, .line { stroke: #8b949e; }
  .tip { fill: #8b949e; }
}"""

_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">
<title>{title}</title>
<style>
{style}
</style>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0L10 5L0 10z"/></marker></defs>
<rect class="page" width="{width:g}" height="{height:g}" rx="8"/>
"""


@define
class Drawing:
    """Collect the elements of one picture."""

    title: str
    width: float
    height: float
    _elements: list[str] = field(init=False, factory=list)

    def box(self, centre: Point, size: Point, *lines: str, kind: str = "", code: bool = True) -> None:
        """Draw a box with its lines of text in the middle."""
        (x, y), (width, height) = centre, size
        self._elements.append(
            f'<rect class="box {kind}" x="{x - width / 2:g}" y="{y - height / 2:g}"'
            f' width="{width:g}" height="{height:g}" rx="6"/>'
        )
        top = y + 4.5 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(
                (x, top + 16 * number), line, "code" if code and not number else "note" if number else ""
            )

    def frame(self, centre: Point, size: Point) -> None:
        """Draw a dashed frame around things that belong together."""
        (x, y), (width, height) = centre, size
        self._elements.append(
            f'<rect class="group" x="{x - width / 2:g}" y="{y - height / 2:g}"'
            f' width="{width:g}" height="{height:g}" rx="10"/>'
        )

    def arrow(self, points: Sequence[Point], *, dashed: bool = False, tip: bool = True) -> None:
        """Draw a line through *points*, with a tip at the last."""
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        kind = "line dashed" if dashed else "line"
        self._elements.append(
            f'<path class="{kind}" d="M{path}"{" marker-end=" + repr("url(#tip)") if tip else ""}/>'
        )

    def text(self, at: Point, words: str, kind: str = "note") -> None:
        """Write words, centred unless *kind* says ``left``."""
        self._elements.append(f'<text class="{kind}" x="{at[0]:g}" y="{at[1]:g}">{escape(words)}</text>')

    def svg(self) -> str:
        """Return the picture."""
        head = _HEAD.format(title=escape(self.title), style=_STYLE, width=self.width, height=self.height)
        return head + "\n".join(self._elements) + "\n</svg>\n"
