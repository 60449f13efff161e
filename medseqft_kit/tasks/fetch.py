"""A public data set by name: downloaded where its licence allows that, else how to get it."""

from __future__ import annotations

import difflib
from pathlib import Path
from urllib.parse import urlparse

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tasks.archives import extract
from medseqft_kit.tasks.catalogue import CATALOGUE, DataSet
from medseqft_kit.tasks.download import ResumingDownloader


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


def fetch(data_set: DataSet, out: Path, progress: Progress = silent) -> Path:
    """Download, verify and extract a data set into ``OUT/<name>``; a folder that is there already is left alone.

    Stopped at any moment, the next call continues: the archive as ``OUT/<archive>.part`` until its checksum is
    verified, the folder only when all of it is extracted. The archive is removed then.

    Parameters
    ----------
    data_set
        With a `url` and its `sha256`.

    Raises
    ------
    DataError
        If the download fails, its checksum is another (nothing of it is kept), or the archive is not harmless.
    """
    import pooch  # type: ignore[import-untyped]

    folder = out / data_set.name
    if folder.exists():
        return folder
    out.mkdir(parents=True, exist_ok=True)
    archive = out / Path(urlparse(data_set.url).path).name
    downloader = ResumingDownloader(archive.with_name(f"{archive.name}.part"), progress)
    try:
        pooch.retrieve(data_set.url, f"sha256:{data_set.sha256}", archive.name, out, downloader=downloader)
    except ValueError as problem:  # pooch's word for another checksum; it has removed what arrived
        raise DataError(
            f"{data_set.url} is not the file it should be; it was removed.",
            found=str(problem),
            expected=f"sha256 {data_set.sha256}",
            next_step="try again; if it stays so, the file has changed at its source",
        ) from problem
    extract(archive, folder, progress)
    archive.unlink()
    return folder


def about(data_set: DataSet) -> str:
    """Title, licence and citation, as lines for people."""
    commercial = {True: "", False: " (not for commercial use)", None: " (commercial use: not known)"}
    lines = (
        data_set.title,
        f"licence: {data_set.licence}{commercial[data_set.commercial]}",
        f"cite: {data_set.reference}",
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
