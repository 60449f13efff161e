"""One process at a time works on a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseqft_kit.errors import RunError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it is released by the operating system when the process ends, however it ends.

    Raises
    ------
    RunError
        If another process holds it, with that process's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = json.loads(file.read() or "{}")
            raise RunError(
                f"{folder} is being worked on by another process.",
                found=f"process {holder.get('process', '?')} on {holder.get('host', '?')}",
                expected="one process at a time",
                next_step="wait for it, or stop it and start this command again: it continues",
            ) from None
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield
