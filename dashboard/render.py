"""Templates into answers: escaped, under a strict policy, kept nowhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from dashboard import figures

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent / "templates"
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'",
        "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@cache
def _environment() -> jinja2.Environment:
    import jinja2  # paid for by the first page, not by every daemon

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        auto_reload=False,  # a daemon goes on with the templates that it began with, as with its code
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["f"] = figures
    return made


def page(name: str, values: dict[str, Any], status: int = 200) -> Response:
    text = _environment().get_template(name).render(values)
    # A name may hold halves of surrogate pairs, which are not UTF-8.
    return Response(text.encode("utf-8", "replace"), status, dict(HEADERS), "text/html; charset=utf-8")
