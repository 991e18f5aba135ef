"""The report of a run: what was compared, what came out, and how it can be traced.

`gather` reads the stored manifest and artifacts into one plain mapping; HTML, Markdown and JSON are written from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from services.report.gather import gather
from services.store import Store

Form = Literal["html", "md", "json"]


def write(store: Store, run: str, path: Path, *, form: str | None = None) -> Path:
    """Write the report of a stored run to `path`; the form follows the ending if it is not given."""
    view = gather(store, run)
    kind = form or path.suffix.removeprefix(".")
    if kind == "json":
        text = json.dumps(view, indent=1, default=str, ensure_ascii=False)
    else:
        from services.report.pages import html, markdown

        text = markdown(view) if kind == "md" else html(view)
    path.write_text(text, encoding="utf-8")
    return path
