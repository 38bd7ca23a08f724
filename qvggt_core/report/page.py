"""How a page is put together: templates, styles and scripts in one file that loads nothing."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image as PilImage

from qvggt_core.util.thinning import spread_indices

_RAMP_STEPS = 12
_MAX_CHART_POINTS = 1500


def environment() -> Environment:
    """Return the template engine: every value is escaped, and a missing one is an error."""
    found = Environment(
        loader=PackageLoader("qvggt_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    found.globals["asset"] = _asset
    return found


def render_page(template: str, data: dict[str, Any], **values: Any) -> str:
    """Return a page of a template.

    Every value is escaped by the template engine, and the data so that it cannot end its script:
    names in a recording are text, never markup.

    Args:
        template: name of the template.
        data: what the scripts draw; JSON-able.
        values: what the template fills in.
    """
    # NaN and infinity are not JSON; None is.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(sign, escaped)
    return (
        environment()
        .get_template(template)
        .render(
            data=Markup(text),  # noqa: S704 - escaped above, as JSON
            data_has_cloud=bool(data.get("cloud")),
            charts=data["charts"],
            **values,
        )
    )


def _asset(name: str) -> Markup:
    text = (files("qvggt_core.report") / "templates" / name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - a file of this package


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return bytes as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def photo(image: NDArray[np.uint8]) -> str:
    """Return the address of a picture (H, W, 3) uint8, as JPEG."""
    buffer = BytesIO()
    PilImage.fromarray(image).save(buffer, format="JPEG", quality=88)
    return data_uri(buffer.getvalue(), "image/jpeg")


def painted(values: NDArray, colormap: str, low: float, high: float) -> str:
    """Return the address of a picture of (H, W) values in colours; NaN is transparent."""
    colors = mpl.colormaps[colormap].with_extremes(bad=(0.5, 0.5, 0.5, 0.25))
    share = (np.ma.masked_invalid(values) - low) / max(high - low, 1e-12)
    buffer = BytesIO()
    PilImage.fromarray(colors(share, bytes=True)).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue())


def ramp(name: str, colormap: str, low: str, high: str) -> dict[str, str]:
    """Return what a legend of a colormap needs."""
    colors = mpl.colormaps[colormap](np.linspace(0.0, 1.0, _RAMP_STEPS))
    stops = ", ".join(mpl.colors.to_hex(color) for color in colors)
    return {"name": name, "low": low, "high": high, "css": f"linear-gradient(90deg, {stops})"}


def numbers(values: Any) -> list[float | None]:
    """Return numbers as JSON has them, six digits each; what is not finite is null."""
    return [
        float(f"{value:.6g}") if np.isfinite(value) else None
        for value in np.asarray(values, dtype=np.float64).ravel()
    ]


def series(name: str, x: Any, y: Any, color: str, **more: Any) -> dict[str, Any]:
    """Return a line of a chart, thinned."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = spread_indices(len(x), _MAX_CHART_POINTS)
    if "time" in more:
        more["time"] = numbers(np.asarray(more["time"])[keep])
    return {"name": name, "x": numbers(x[keep]), "y": numbers(y[keep]), "color": color, **more}
