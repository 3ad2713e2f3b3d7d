"""Writes matplotlib figures as SVG: a file of its own, or part of a page whose theme sets the colours."""

import hashlib
import html
import io
import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from eval.report.series import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, LINE, PAPER = "#171c26", "#566072", "#dfe3ea", "#ffffff"  # report.css has variables for these
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--card"}
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(LIGHT)}


def style() -> AbstractContextManager[None]:
    """The style in which charts are made and written: text stays text, and `$` in a name is not mathematics."""
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "fewstep",
            "font.family": "sans-serif",
            "font.size": 12,
            "text.color": INK,
            "text.parse_math": False,
        }
    )


def as_file(figure: "Figure", background: str = PAPER) -> str:
    """A figure as an SVG file with a background, the same for the same figure."""
    return _draw(figure, background)


def as_inline(figure: "Figure", label: str, titles: Mapping[str, str] | None = None) -> str:
    """A figure as an element of an HTML page.

    Colours are the variables of report.css, text has the page's font, and identifiers do not repeat in a page.

    Args:
        figure: The figure.
        label: What it shows, for screen readers.
        titles: Tooltips by the `gid` of the artists that have them.
    """
    svg = _draw(figure, "none")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([^'\";]*?)(\d[\d.]*px)[^;\"]*", r"font-size: \2; font-weight: \1", svg)
    svg = re.sub(r"font-weight: *(?=[;\"])", "font-weight: 400", svg)
    svg = svg.replace("xlink:href=", "href=")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    prefix = hashlib.sha256(f"{label}{svg}".encode()).hexdigest()[:6]
    svg = re.sub(r'\bid="', f'id="c{prefix}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#c{prefix}-", svg)
    for gid, title in (titles or {}).items():
        svg = svg.replace(f'<g id="c{prefix}-{gid}">', f'<g id="c{prefix}-{gid}"><title>{html.escape(title)}</title>')
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None, "matplotlib writes a viewBox"
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {size.group()} stroke-linejoin="round">'
    return head + svg[svg.index(">") + 1 :]


def _draw(figure: "Figure", background: str) -> str:
    stream = io.StringIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has other fonts
        figure.savefig(stream, format="svg", facecolor=background, metadata={"Date": None, "Creator": None})
    return stream.getvalue()
