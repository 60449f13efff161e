"""A hook of the site: Sphinx roles of docstrings (:func:`name`) become plain names, which Markdown can show."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Keep the name, by its last part where it is one of ours."""
    return ROLE.sub(lambda role: f"<code>{_short(role[1])}</code>", html)


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1] if name.startswith("medseqft_kit.") else name
