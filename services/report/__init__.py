"""The report of a run: what was compared, what came out, and how it can be traced.

`gather` reads the stored manifest and artifacts into one plain mapping; HTML, Markdown and JSON are written from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from cuvee.errors import UserError
from services.report.gather import gather
from services.store import Store

Form = Literal["html", "md", "json"]


def write(store: Store, run: str, path: Path, *, form: str | None = None) -> Path:
    """Write the report of a stored run to `path`; the form follows the ending if it is not given."""
    kind = form or path.suffix.removeprefix(".")
    if kind not in ("html", "md", "json"):
        raise UserError(f"no report is written as {kind or path.name!r}", remedy="html, md or json")
    view = gather(store, run)
    if kind == "json":
        text = json.dumps(view, indent=1, default=str, ensure_ascii=False, allow_nan=False)
    elif kind == "md":
        from services.report.markdown import markdown

        text = markdown(view)
    else:
        from services.report.html import html

        text = html(view)
    path.write_text(text, encoding="utf-8")
    return path
