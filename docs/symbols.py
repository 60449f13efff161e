"""A hook of the site: models named M_0, M'_t or M_{t-1} in text appear as in the paper, with primes and subscripts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig

MODEL = r"\bM(['’′]?)_(?:\{([^}\s]+)\}|(\w)\b)"
AFTER_CODE = 175
"""Priority: code and escapes first (180 and more), emphasis by underscores (50) later."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension to those of every page, docstrings included."""
    config.markdown_extensions.append(Symbols())  # type: ignore[arg-type]  # MkDocs hands instances on
    return config


class Symbols(Extension):
    """The extension of Python-Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # Python-Markdown's name
        """Register the pattern."""
        md.inlinePatterns.register(Model(MODEL, md), "models", AFTER_CODE)


class Model(InlineProcessor):
    """One symbol as M, a prime, and what stands below."""

    def handleMatch(  # type: ignore[override]  # noqa: N802  # its signature there is that of an older kind
        self, found: re.Match[str], data: str
    ) -> tuple[ElementTree.Element, int, int]:
        """The element, and where in the text it was."""
        symbol = ElementTree.Element("span")
        symbol.text = "M" + "′" * len(found[1])
        below = ElementTree.SubElement(symbol, "sub")
        below.text = (found[2] or found[3]).replace("-", "−")
        return symbol, found.start(), found.end()
