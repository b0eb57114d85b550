"""What every figure of the report shares: colours, a canvas in SVG user units, and an `<svg>` that may stand among others."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

INK: Final = "#1d2b36"
MUTED: Final = "#66757f"
RULE: Final = "#c9d1d6"
BLUE: Final = "#1f5f99"
STRONG: Final = "#b3471d"
COLOURS: Final = {
    "loho": BLUE,
    "federated": "#0f7b6c",
    "pooled": "#8a5a00",
    "pooled_within": "#8a5a00",
    "local": "#8c3b6e",
    "tabular": "#5a5fa8",
    "ich_score": "#7a6a58",
}
MARKERS: Final = {
    "loho": "o",
    "federated": "o",
    "pooled": "s",
    "pooled_within": "s",
    "local": "^",
    "tabular": "D",
    "ich_score": "v",
}

_STYLE: Final[Mapping[Any, Any]] = {
    "svg.fonttype": "none",  # real text: it can be searched and read aloud; the page chooses the font
    "text.parse_math": False,  # a hospital may be called $x$
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "legend.fontsize": 11.0,
}
_NO_METADATA: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many SVG user units, drawn in our style; nothing of pyplot is touched."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has it
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def box(x: float, y: float, w: float, h: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, width, height in user units as matplotlib's shares of a figure of `width` x `height`."""
    return x / width, y / height, w / width, h / height


def short(name: str, length: int) -> str:
    """A name on one line, cut to so many characters."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def svg(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an `<svg>` that may stand among others: its ids begin with `name`, and it has no style of its own."""
    mpl.rcParams["svg.hashsalt"] = name
    written = io.BytesIO()
    figure.patch.set_alpha(0)
    figure.savefig(written, format="svg", metadata=_NO_METADATA)
    text = written.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag[0]), text)
    width, height = (round(side * 72) for side in figure.get_size_inches())
    opening = (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}"'
        f' style="min-width:{0.9 * width:.0f}px;max-width:{1.2 * width:.0f}px"'
        ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(opening + text[text.index(">") + 1 :].strip())  # matplotlib has escaped its texts
