"""Products that several runs need, made once: files under a key of everything that their content depends on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Make = Callable[[], Sequence[str]]
UNFINISHED = ".unfinished-"


def take_or_make(shared: Path | None, ingredients: Mapping[str, Any], into: Path, record: Path, make: Make) -> bool:
    """Put files into the folder `into`: those that another run made of the same ingredients, or new ones.

    Parameters
    ----------
    shared
        Where products are kept; None makes them without looking and keeps nothing.
    ingredients
        All that the files' content depends on, as JSON takes it.
    into
        The run's own folder; it never changes a file in place, so files on one disk are linked, not copied.
    record
        The file among them that appears last, so that whoever finds it after a kill has all of them.
    make
        Writes files below `into`, the record last, and returns their paths relative to it. It runs while no other
        process makes, or waits to take, the same product.

    Returns
    -------
    bool
        Whether the files were there already.
    """
    if shared is None:
        make()
        return False
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
    product = shared / key
    with _alone(shared, key):
        if product.is_dir():
            there = [path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file()]
            _link_all(product, into, sorted(there, key=lambda name: (into / name == record, name)))
            return True
        names = make()
        unfinished = shared / f"{UNFINISHED}{key}"
        shutil.rmtree(unfinished, ignore_errors=True)
        _link_all(into, unfinished, names)
        unfinished.rename(product)
    return False


def _link_all(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).unlink(missing_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:  # another disk, or one that knows no links
            shutil.copy2(source / name, target / name)


@contextmanager
def _alone(shared: Path, key: str) -> Iterator[None]:
    """Hold the product's lock, which the operating system frees with the process."""
    shared.mkdir(parents=True, exist_ok=True)
    with (shared / f".{key}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
