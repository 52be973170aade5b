"""Puts a page together: one HTML file with its data, which loads nothing and runs no script but its own.

The data may be of strangers: they are put into the page as JSON that cannot close its element, and the page's own
security policy lets no other script than its own run, nor anything be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

SHARED = "lightning_autoassist.pages"


def write_html(path: Path, package: str, name: str, data: Any) -> None:
    """Write one HTML file, from ``NAME.html`` and ``NAME.js`` of a package and the parts that all pages share.

    Args:
        path: The file.
        package: That has the two; the template has ``@STYLE@``, ``@HASH@``, ``@DATA@`` and ``@SCRIPT@`` in it.
        name: Of the two, without their endings.
        data: What the script finds in ``data``.
    """
    script = _text(SHARED, "page_parts.js") + _text(package, f"{name}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Data last: what looks like a placeholder in them stays.
    page = _text(package, f"{name}.html").replace("@STYLE@", _text(SHARED, "page_parts.css"))
    page = page.replace("@HASH@", digest).replace("@SCRIPT@", script).replace("@DATA@", as_json(data))
    path.write_text(page, encoding="utf-8")


def as_json(value: Any) -> str:
    r"""JSON that is safe inside of a script element: no character of it can begin or end markup.

    Example:
        >>> as_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(finite(value), ensure_ascii=True)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, with None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def _text(package: str, file: str) -> str:
    return files(package).joinpath(file).read_text(encoding="utf-8")
