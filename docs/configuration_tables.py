"""Write the tables of docs/configuration.md from the settings themselves, so that no default is said twice.

Run by `make docs`; a test compares the page with what this would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medseqft_kit.config import Config

PAGE = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- tables: begin (written by configuration_tables.py) -->", "<!-- tables: end -->"


def rendered(page: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(_table(key, section) for key, section in sections(Config))
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def sections(section: type[BaseModel], key: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with its key, the whole file first (its key is empty)."""
    yield key, section
    for name, field in _fields(section).items():
        inner = _section_of(field.annotation)
        if inner is not None and name != "unseen":  # written like `tasks`
            yield from sections(inner, f"{key}.{name}" if key else name)


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's fields, its own before those it inherits: data and model come before how to train."""
    return dict(sorted(section.model_fields.items(), key=lambda item: item[0] not in section.__annotations__))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def _table(key: str, section: type[BaseModel]) -> str:
    heading = f"`{key}`" if key else "The whole file"
    about = (section.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    head = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows = [_row(name, field) for name, field in _fields(section).items()]
    return "\n".join([f"## {heading}", "", about, "", *head, *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`{name}`", _type(field.annotation), _default(field), field.description or _refers(field)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _refers(field: FieldInfo) -> str:
    return "its own section, below" if _section_of(field.annotation) is not None else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), [part for part in get_args(annotation) if part is not NoneType]
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if _section_of(annotation) is not None:
        return "list of sections" if origin is tuple else "section"
    if origin is tuple:
        repeated = inside[-1] is Ellipsis
        return f"list of {_type(inside[0])}" if repeated else f"{len(inside)} × {_type(inside[0])}"
    if origin is dict:
        return "mapping"
    if inside:  # a union, or a type with a check attached
        known = [part for part in inside if isinstance(part, type) or get_origin(part) is not None]
        return " or ".join(map(_type, known))
    return {"str": "text", "bool": "true or false", "float": "number", "int": "integer", "Path": "path"}.get(
        annotation.__name__, annotation.__name__
    )


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
