"""Archives extracted without trust: plain files and folders below the target, or nothing at all.

Python's own filter for tar files (``filter="data"``, PEP 706) is asked too; zip files have none, and neither counts
bytes.
"""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import NoReturn

from medseqft_kit.errors import DataError
from medseqft_kit.progress import Progress, silent

EXPANSION = 20
"""Times its own size that an archive may hold. Images are compressed within their archives already; even label maps
stored raw rarely reach this."""
MEGABYTE = 10**6
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Parameters
    ----------
    size
        Bytes that its header announces; neither library extracts more.
    plain
        Whether it is a file or a folder: no link, no device, no sparse file.
    extract
        Writes it below a folder.
    """

    name: str
    size: int
    plain: bool
    extract: Callable[[Path], object]


def extract(archive: Path, target: Path, progress: Progress = silent) -> None:
    """Extract a tar (compressed or not) or zip file into the new folder `target`, which appears whole or not at all.

    A single folder at the archive's top becomes `target` itself.

    Raises
    ------
    DataError
        If `target` exists; if an entry leads out of it, is a link or a device; if the entries together are more than
        :data:`EXPANSION` times the archive; if it is damaged or the disk is full. Nothing is left of it then.
    """
    if target.exists():
        raise DataError(f"{target} is there already.", next_step="move it away first")
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    size, announced = archive.stat().st_size, 0
    label, whole = f"extracting {archive.name}, MB", -(-size // MEGABYTE)
    try:
        with closing(_members(archive)) as members:
            for member in members:
                _require_harmless(archive, member)
                announced += member.size
                if announced > EXPANSION * size:
                    _refuse(
                        archive, f"more than {announced} bytes announced", f"at most {EXPANSION} times its own size"
                    )
                member.extract(unfinished)
                progress(label, min(announced // MEGABYTE, whole - 1), whole)
        progress(label, whole, whole)
        _top(unfinished).rename(target)
    except _DAMAGED as problem:
        _refuse(archive, f"{problem}", "a complete archive, and room on the disk for what it holds")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _top(folder: Path) -> Path:
    content = list(folder.iterdir())
    if len(content) == 1 and content[0].is_dir():
        return content[0]
    folder.chmod(0o755)  # mkdtemp's are for the owner alone
    return folder


def _members(archive: Path) -> Generator[Member, None, None]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                yield Member(info.filename, info.file_size, plain, partial(opened.extract, info))
    else:
        with tarfile.open(archive) as packed:
            for entry in packed:
                plain = (entry.isreg() or entry.isdir()) and not entry.issparse()
                yield Member(entry.name, entry.size, plain, partial(packed.extract, entry, filter="data"))


def _require_harmless(archive: Path, member: Member) -> None:
    name = member.name
    if not member.plain:
        _refuse(archive, f"{name!r}: a link, a device or a sparse file", "plain files and folders")
    if name.startswith("/") or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        _refuse(archive, f"{name!r}: a name outside the folder", "relative names with forward slashes")
    if ".." in PurePosixPath(name).parts:
        _refuse(archive, f"{name!r}: a way out of the folder", "names below the folder")


def _refuse(archive: Path, found: str, expected: str) -> NoReturn:
    raise DataError(
        f"{archive} cannot be extracted.", found=found, expected=expected, next_step="remove it and fetch it again"
    )
