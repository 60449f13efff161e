"""One file over HTTP that survives breaks: what has arrived is kept, and the next attempt asks for the rest alone.

A downloader for pooch, which compares the checksum and gives the file its name only if it is right.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import medseqft_kit
from medseqft_kit.errors import DataError
from medseqft_kit.progress import Progress, silent

ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
CHUNK = 1 << 20
MEGABYTE = 10**6
RANGE_NOT_SATISFIABLE = 416
PARTIAL = 206
WORTH_ANOTHER_TRY = {408, 425, 429, RANGE_NOT_SATISFIABLE}
"""HTTP errors of the client's side (4xx) that may pass; others of that side will not."""


@dataclass(frozen=True)
class ResumingDownloader:
    """Downloads into `part` and, when that is whole, moves it to where pooch wants it.

    Parameters
    ----------
    part
        What has arrived so far, from this call or an earlier one; continued by HTTP's Range (RFC 9110, 14). A server
        that ignores Range starts it over.
    progress
        Called with megabytes.
    """

    part: Path
    progress: Progress = silent

    def __call__(self, url: str, output_file: str | Path, pooch: Any = None) -> None:
        """Download `url`; pooch compares the checksum afterwards.

        Raises
        ------
        DataError
            If the server refuses, the disk is too small, or the connection broke :data:`ATTEMPTS` times. What has
            arrived is kept.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._continue(url)
                break
            except (OSError, HTTPException) as problem:
                code = problem.code if isinstance(problem, HTTPError) else 0
                lasting = 400 <= code < 500 and code not in WORTH_ANOTHER_TRY
                if lasting or attempt == ATTEMPTS:
                    raise self._failed(url, problem) from problem
                time.sleep(PAUSE * 2 ** (attempt - 1))
        shutil.move(self.part, output_file)

    def _continue(self, url: str) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity", "User-Agent": f"medseqft-kit/{medseqft_kit.__version__}"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
                self._append(response, have)
        except HTTPError as problem:
            if problem.code != RANGE_NOT_SATISFIABLE or _total(problem.headers.get("Content-Range")) != have:
                if problem.code == RANGE_NOT_SATISFIABLE:
                    self.part.unlink()  # longer than the file: another one
                raise

    def _append(self, response: HTTPResponse, have: int) -> None:
        start = _first(response.headers.get("Content-Range")) if response.status == PARTIAL else 0
        if start not in (0, have):
            raise HTTPException(f"asked for bytes from {have}, got bytes from {start}")
        length = response.headers.get("Content-Length")
        self._require_room(int(length or 0))
        total = start + int(length) if length else None
        done, label = start, f"downloading {self.part.stem}, MB"
        with self.part.open("ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                self.progress(label, done // MEGABYTE, (total or done) // MEGABYTE + 1)
        if total is not None and done != total:
            raise ConnectionError(f"the connection closed after {done} of {total} bytes")
        self.progress(label, done // MEGABYTE + 1, done // MEGABYTE + 1)

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise DataError(
                f"{self.part.parent} has no room for the download.",
                found=f"{free // MEGABYTE} MB free",
                expected=f"{needed // MEGABYTE} MB",
                next_step="make room, or choose another --out",
            )

    def _failed(self, url: str, problem: Exception) -> DataError:
        have = self.part.stat().st_size if self.part.exists() else 0
        return DataError(
            f"{url} could not be downloaded.",
            found=str(problem),
            expected="the whole file",
            next_step=f"the same command continues after the {have} bytes kept in {self.part}"
            if have
            else "try again later",
            unchanged=not have,
        )


def _first(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


def _total(content_range: str | None) -> int | None:
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else None
