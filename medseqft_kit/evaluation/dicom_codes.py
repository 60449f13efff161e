"""A structure's name as coded concepts of DICOM: what it is (category, type), and on which side.

The concepts are those of DICOM's own context groups, as pydicom carries them: anatomical structures (CID 7192), tissues
(CID 7166) and lesions (CID 7159) of PS3.16. A name that they do not know is coded as SNOMED CT's "Tissue"; the name
itself is always the segment's label.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

SYNONYMS = {
    "bowel": "intestine",
    "cancer": "neoplasm",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "vertebrae": "vertebra",
}
"""Words of data sets to those of the context groups."""
SIDES = {"left": "Left", "right": "Right"}
FILLERS = {"of", "the"}
LESIONS = "CID7159"
CATEGORIES = {
    "CID7192": "AnatomicalStructure",
    "CID7166": "Tissue",
    LESIONS: "MorphologicallyAbnormalStructure",
}
"""Context group of property types to the property category (CID 7150) of its members; the first match counts."""


@dataclass(frozen=True)
class Concept:
    """Segmented property category and type; `side` modifies the type where the type itself has no side."""

    category: Code
    kind: Code
    side: Code | None


def concept(structure: str) -> Concept:
    """The concept that a structure's name means; word order does not matter.

    >>> found = concept("kidney_left")
    >>> found.category.meaning, found.kind.meaning, found.side.meaning
    ('Anatomical Structure', 'Kidney', 'Left')
    >>> concept("liver tumour").kind.meaning, concept("something else").kind.meaning
    ('Neoplasm', 'Tissue')
    """
    from pydicom.sr.codedict import codes

    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z0-9]+", structure.lower())]
    sides = [word for word in words if word in SIDES]
    side = getattr(codes.SCT, SIDES[sides[0]]) if len(sides) == 1 else None
    for key, modifier in ((words, None), ([word for word in words if word not in SIDES], side)):
        if found := _known().get(_key(key)):
            return Concept(*found, modifier)
    lesion = _known().get(_key(words[-1:])) if words else None
    if lesion is not None and lesion[0].meaning == codes.CID7150.MorphologicallyAbnormalStructure.meaning:
        return Concept(*lesion, side)
    return Concept(codes.CID7150.Tissue, codes.CID7166.Tissue, side)


def _key(words: Collection[str]) -> frozenset[str]:
    return frozenset(words) - FILLERS


@cache
def _known() -> dict[frozenset[str], tuple[Code, Code]]:
    from pydicom.sr.codedict import codes

    known: dict[frozenset[str], tuple[Code, Code]] = {}
    for group, category in CATEGORIES.items():
        for keyword, kind in getattr(codes, group).concepts.items():
            words = [word.lower() for word in re.findall(r"[A-Z][a-z]*\d*", keyword)]
            known.setdefault(_key(words), (getattr(codes.CID7150, category), kind))
    return known
