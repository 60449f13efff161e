"""A hook of the site: every notebook becomes a page of text and code, its formulas MathML that browsers draw alone."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
BLOCK, INLINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"\$([^$\n]+)\$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``notebooks/NAME.md`` for each notebook."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """A notebook as Markdown: its cells in order, without outputs; where it lies stands under its title."""
    cells = nbformat.read(path, as_version=4).cells
    texts = [f"```python\n{cell.source}\n```" if cell.cell_type == "code" else prose(cell.source) for cell in cells]
    title, _, rest = texts[0].partition("\n")
    where = f"*`notebooks/{path.name}`: open it in JupyterLab to run it; `make notebooks` runs them all.*"
    return "\n\n".join([title, where, rest.strip(), *texts[1:]]) + "\n"


def prose(text: str) -> str:
    """Markdown of a cell as the site has it: links to pages of the site, and every formula between dollars as MathML.

    Formulas stand within a span, or Markdown would end the paragraph at them.
    """
    text = text.replace("](../docs/", "](../").replace(".ipynb)", ".md)")
    text = BLOCK.sub(lambda found: f"<span>{convert(found[1].strip(), display='block')}</span>", text)
    return INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", text)
