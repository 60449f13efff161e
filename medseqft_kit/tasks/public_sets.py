"""Which public data set is meant: by its name, or by what a folder holds; what people should know of it."""

from __future__ import annotations

import difflib

from medseqft_kit.errors import ConfigError
from medseqft_kit.tasks.catalogue import CATALOGUE, DataSet
from medseqft_kit.tasks.types import Task


def find_data_set(name: str) -> DataSet:
    """The catalogue's entry; upper and lower case are the same.

    Raises
    ------
    ConfigError
        If there is none, with the nearest names.
    """
    names = {known.lower(): known for known in CATALOGUE}
    if name.lower() in names:
        return CATALOGUE[names[name.lower()]]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
    raise ConfigError(
        "there is no data set of this name in the catalogue.",
        found=name,
        expected=" or ".join(names[key] for key in near) if near else ", ".join(CATALOGUE),
        next_step=f"medseqft fetch {names[near[0]]}" if near else "choose one of these",
    )


def data_sets_in(task: Task) -> tuple[DataSet, ...]:
    """Entries of the catalogue with the layout, the structures and a modality of a task as its folder was read."""
    kinds = {case.channels or task.channels for case in (*task.cases, *task.unlabelled)}
    return tuple(
        known
        for known in CATALOGUE.values()
        if known.layout == task.layout
        and known.modality in kinds
        and {name: (value,) for name, value in known.structures.items()} == dict(task.structures)
    )


def about(data_set: DataSet) -> str:
    """Title, licence, citation and the usual preprocessing as a task takes it, as lines for people."""
    commercial = {True: "", False: " (not for commercial use)", None: " (commercial use: not known)"}
    usual = {"spacing": data_set.spacing, "window": data_set.window, "patch": data_set.patch}
    settings = (f"{key}: [{', '.join(f'{x:g}' for x in values)}]" for key, values in usual.items() if values)
    lines = (
        f"{data_set.name}: {data_set.title}",
        f"licence: {data_set.licence}{commercial[data_set.commercial]}",
        f"cite: {data_set.reference}",
        f"usual: {', '.join(settings) or 'the median spacing'}; nothing applies this unasked",
    )
    return "\n".join(lines)


def instructions(data_set: DataSet) -> str:
    """How to get a data set that may not be downloaded for you."""
    return "\n".join(
        (
            about(data_set),
            f"{data_set.name} is not downloaded for you: its source asks for an account, terms or a tool of its own.",
            f"  1. {data_set.obtain}",
            "  2. extract it, keeping its folders",
            "  3. medseqft check FOLDER",
        )
    )
