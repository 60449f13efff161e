"""Importing this module shortens the start of a process that is the kit's own: a command, or one that runs jobs.

MONAI imports all of itself, and with it what only a few of its parts are for. In a user's own process they may be
wanted, so nothing else imports this module.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

FOR_PARTS_NOT_USED = {"jsonschema", "transformers"}
"""MONAI checks the metadata of a bundle with one, and has a network for text from the other."""


class _AbsentForMonai(MetaPathFinder):
    """Says that they are not installed while MONAI is being imported, and lets them be found ever after."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        monai = sys.modules.get("monai")
        if name in FOR_PARTS_NOT_USED and monai is not None and getattr(monai.__spec__, "_initializing", False):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _AbsentForMonai())
