"""HTML pages in one file, with style, script and pictures inside."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import lru_cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from finetune.report.axes import number
from finetune.terminal import printable

THUMBNAIL = 96
_QUALITY = 70
_FLAG = re.compile(r"(--[a-z][a-z-]*)")


def render(template: str, *, package: str | None = None, **values: Any) -> str:
    """Fill in a template. The page loads nothing, and its content security policy allows the script of the page alone.

    Args:
        template: Name of the template; it extends base.html.j2.
        package: With a templates/ folder that is searched before finetune's.
        values: Variables of the template. Text is escaped, unless it is a markupsafe.Markup. Marks in names that
            would reorder or hide what stands beside them are escaped everywhere.
    """
    page = _environment(package).get_template(template).render(**values)
    return "\n".join(map(printable, page.split("\n")))


def thumbnail(picture: Image.Image, side: int = THUMBNAIL) -> str:
    """A data URI of `picture`, reduced to at most `side` pixels on each side."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY, method=1)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@lru_cache
def _environment(package: str | None) -> Environment:
    own = PackageLoader("finetune.report")
    loader = own if package is None else ChoiceLoader([PackageLoader(package), own])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    assert environment.loader is not None
    style, script = (environment.loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment.globals |= {"style": Markup(style), "script": Markup(script), "script_digest": digest}
    environment.filters |= {"percent": _percent, "number": number, "flags": _flags}
    return environment


def _flags(sentence: str) -> Markup:
    """`sentence` with its command-line options set as code."""
    return Markup(_FLAG.sub(r'<code class="flag">\1</code>', str(escape(sentence))))


def _percent(share: float | None) -> str:
    """A share in [0, 1] with one decimal, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}%"
