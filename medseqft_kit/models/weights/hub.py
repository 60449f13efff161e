"""Where a weight file lies: on disk, or on the Hugging Face hub as ``hf://owner/repository/path/in/it``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medseqft_kit.errors import ModelError

Download = Callable[[str, str], str]
"""Repository and the file's path in it to a path on disk."""


def from_hub(repository: str, file: str) -> str:
    """Fetch a file into the hub's own cache, where it is not there yet."""
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(repository, file))


def located(name: str | Path, download: Download = from_hub) -> Path:
    """The file on disk.

    Raises
    ------
    ModelError
        If a hub name is incomplete, or the hub does not give the file.
    """
    scheme = "hf:/"  # what a Path leaves of it
    if not str(name).startswith(scheme):
        return Path(name)
    owner, _, rest = str(name).removeprefix(scheme).lstrip("/").partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise ModelError(
            f"{name} names no file on the hub.", found=str(name), expected="hf://owner/repository/path/of/the/file"
        )
    try:
        return Path(download(f"{owner}/{repository}", file))
    except (OSError, ValueError) as problem:  # the hub's own errors derive from these two
        raise ModelError(
            f"{name} cannot be fetched.",
            found=str(problem).strip().splitlines()[0],
            expected="a public file, or one that `hf auth login` gives access to",
            next_step="download it by hand and give its path",
        ) from problem
