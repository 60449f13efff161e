"""A public data set, downloaded where its licence allows that."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from medseqft_kit.errors import DataError
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tasks.archives import extract
from medseqft_kit.tasks.catalogue import DataSet
from medseqft_kit.tasks.download import ResumingDownloader


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
