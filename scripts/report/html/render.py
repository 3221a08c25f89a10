"""Render pages from the templates beside this module: one file each, including style and script; nothing is fetched.

The page's own script is allowed by its hash; no other script can run, whatever text a header contains.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...core.text import DISCLAIMER, shown_duration
from .pictures import data_uri

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(name: str, **values: Any) -> str:
    """Render ``<name>.html.j2`` with the style and script of that name, preceded by those that all pages share.

    Args:
        name: of the page's template.
        values: what the page shows; every text is escaped.
    """
    style = "".join(_text(f"{part}.css") for part in ("base", name))
    script = "\n" + "".join(_text(f"{part}.js") for part in ("base", name))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment().get_template(f"{name}.html.j2")
    inside = {"style": Markup(style), "script": Markup(script), "script_hash": digest}
    return template.render(disclaimer=DISCLAIMER, **inside, **values)


def shown_number(value: float, decimals: int = 1) -> str:
    """Format a number for readers, with a typographic minus sign, and never as "−0.0"."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def shown_probability(probability: float) -> str:
    """Format a probability with two decimals, but never as 1.00 or 0.00, which would suggest certainty."""
    if probability > 0.994:
        return "> 0.99"
    return f"{probability:.2f}" if probability >= 0.005 else "< 0.01"


@cache
def _text(name: str) -> str:
    path = _TEMPLATES / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = shown_number
    environment.filters["plain"] = lambda value, decimals=2: f"{value:.{decimals}f}"  # for SVG, CSS and scripts
    environment.filters["data_uri"] = data_uri
    environment.filters["probability"] = shown_probability
    environment.filters["seconds"] = shown_duration
    return environment
