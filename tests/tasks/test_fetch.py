"""Downloads that break, lie and continue, from a server in this process; archives that attack. No network."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseqft_kit.cli.app import app
from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks import download
from medseqft_kit.tasks.archives import extract
from medseqft_kit.tasks.catalogue import CATALOGUE, DataSet
from medseqft_kit.tasks.fetch import fetch
from medseqft_kit.tasks.public_sets import about, find_data_set, instructions

BODY = bytes(range(256)) * 40


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


ARCHIVE = tar_of(("Small/dataset.json", b"{}"), ("Small/imagesTr/a.nii.gz", BODY))


@dataclass
class Server:
    """What it serves, and how badly; `breaks` says after how many bytes each answer ends, None for whole ones."""

    body: bytes = ARCHIVE
    breaks: list[int | None] = field(default_factory=list)
    ranges: bool = True
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/files/Small.tar"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.ranges else 0
        end = self.breaks.pop(0) if self.breaks else None
        if self.status is not None or start >= len(self.body):
            handler.send_response(self.status or 416)
            handler.send_header("Content-Range", f"bytes */{len(self.body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        handler.send_header("Content-Length", str(len(self.body) - start))
        handler.end_headers()
        handler.wfile.write(self.body[start:end])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        http.shutdown()
        thread.join()


def entry(server: Server, content: bytes = ARCHIVE) -> DataSet:
    checksum = hashlib.sha256(content).hexdigest()
    return DataSet(
        "Small", "A small set", "msd", ("CT",), {"a": 1}, "CC0", True, "nobody", "", url=server.url, sha256=checksum
    )


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_data_set_is_downloaded_verified_and_extracted_and_nothing_else_remains(
    server: Server, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    folder = fetch(entry(server), tmp_path / "data", lambda *step: told.append(step))
    assert folder == tmp_path / "data/Small"
    assert everything(tmp_path / "data") == ["Small/dataset.json", "Small/imagesTr/a.nii.gz"]
    assert (folder / "imagesTr/a.nii.gz").read_bytes() == BODY
    assert {label.split()[0] for label, _, _ in told} == {"downloading", "extracting"}
    fetch(entry(server), tmp_path / "data")
    assert len(server.asked) == 1


def test_a_broken_connection_is_continued_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = [3000, 7000, None]
    folder = fetch(entry(server), tmp_path)
    assert server.asked == [None, "bytes=3000-", "bytes=7000-"]
    assert (folder / "imagesTr/a.nii.gz").read_bytes() == BODY


def test_a_download_that_never_ends_says_so_and_the_next_call_continues(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 1001, 1002, 1003, 1004]
    with pytest.raises(DataError, match=r"1004 of \d+ bytes[\s\S]*continues after the 1004 bytes"):
        fetch(entry(server), tmp_path)
    assert everything(tmp_path) == ["Small.tar.part"]
    fetch(entry(server), tmp_path)
    assert server.asked[-1] == "bytes=1004-"
    assert everything(tmp_path / "Small") == ["dataset.json", "imagesTr/a.nii.gz"]


def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [3000, None]
    folder = fetch(entry(server), tmp_path)
    assert server.asked == [None, "bytes=3000-"]
    assert (folder / "imagesTr/a.nii.gz").read_bytes() == BODY


def test_a_part_that_is_whole_already_is_taken_and_one_that_is_too_long_is_not(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Small.tar.part").write_bytes(ARCHIVE)
    fetch(entry(server), tmp_path)
    assert server.asked == [f"bytes={len(ARCHIVE)}-"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again/Small.tar.part").write_bytes(ARCHIVE + b"more")
    fetch(entry(server), tmp_path / "again")
    assert server.asked[1:] == [f"bytes={len(ARCHIVE) + 4}-", None]


@pytest.mark.parametrize("kept", [b"", b"something else"], ids=["fresh", "continued"])
def test_another_checksum_keeps_nothing_and_says_so(server: Server, tmp_path: Path, kept: bytes) -> None:
    server.body = ARCHIVE[:-1] + b"x"
    if kept:
        (tmp_path / "Small.tar.part").write_bytes(kept)
    with pytest.raises(DataError, match=r"not the file it should be[\s\S]*sha256"):
        fetch(entry(server), tmp_path)
    assert everything(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 5)])
def test_a_refusal_is_not_repeated_and_a_busy_server_is_asked_again(
    server: Server, tmp_path: Path, status: int, requests: int
) -> None:
    server.status = status
    with pytest.raises(DataError, match=str(status)):
        fetch(entry(server), tmp_path)
    assert len(server.asked) == requests
    assert everything(tmp_path) == []


def test_a_download_larger_than_the_disk_is_refused_before_it_starts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="no room"):
        fetch(entry(server), tmp_path)
    assert everything(tmp_path) == []


def link(kind: bytes, name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def zip_of(*members: tuple[str, bytes], attributes: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            info.external_attr = attributes << 16
            archive.writestr(info, content)
    return file.getvalue()


GOOD = ("Small/dataset.json", b"{}")
ATTACKS = {
    "tar, way out": (tar_of(GOOD, ("Small/../../evil", b"x")), "way out"),
    "tar, absolute": (tar_of(GOOD, ("/tmp/medseqft_evil", b"x")), "outside"),
    "tar, backslash": (tar_of(GOOD, ("..\\evil", b"x")), "outside"),
    "tar, symbolic link out": (tar_of(link(tarfile.SYMTYPE, "Small", "../elsewhere"), ("Small/x", b"x")), "a link"),
    "tar, hard link": (tar_of(GOOD, link(tarfile.LNKTYPE, "Small/evil", "../secret")), "a link"),
    "tar, device": (tar_of(GOOD, link(tarfile.CHRTYPE, "Small/null", "")), "device"),
    "tar, pipe": (tar_of(GOOD, link(tarfile.FIFOTYPE, "Small/pipe", "")), "device"),
    "tar, bomb": (tar_of(GOOD, ("Small/zeros", bytes(2_000_000)), mode="w:gz"), "20 times"),
    "tar, cut off": (tar_of(GOOD, ("Small/a", BODY))[:3000], "complete"),
    "zip, way out": (zip_of(GOOD, ("Small/../../evil", b"x")), "way out"),
    "zip, absolute": (zip_of(GOOD, ("/tmp/medseqft_evil", b"x")), "outside"),
    "zip, drive": (zip_of(GOOD, ("C:evil", b"x")), "outside"),
    "zip, symbolic link": (zip_of(("Small/link", b"../elsewhere"), attributes=stat.S_IFLNK | 0o777), "a link"),
    "zip, bomb": (zip_of(GOOD, ("Small/zeros", bytes(2_000_000))), "20 times"),
    "zip, cut off": (zip_of(GOOD, ("Small/a", BODY))[:-30], "complete"),
    "neither": (b"<html>not found</html>", "complete"),
}


@pytest.mark.parametrize(("content", "message"), ATTACKS.values(), ids=ATTACKS.keys())
def test_an_archive_that_attacks_or_is_damaged_leaves_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/archive").write_bytes(content)
    with pytest.raises(DataError, match=message):
        extract(tmp_path / "in/archive", tmp_path / "in/Small")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "in",
        "in/archive",
        "secret",
    ]
    assert not Path("/tmp/medseqft_evil").exists()


def test_a_zip_entry_that_holds_more_than_it_announces_is_refused(tmp_path: Path) -> None:
    content = zip_of(("Small/a", BODY * 8))
    size = len(BODY * 8).to_bytes(4, "little")
    assert content.count(size) >= 1
    (tmp_path / "a.zip").write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(DataError, match="cannot be extracted"):
        extract(tmp_path / "a.zip", tmp_path / "Small")
    assert everything(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(
    "content", [tar_of(GOOD, mode="w:gz"), tar_of(GOOD), zip_of(GOOD)], ids=["tar.gz", "tar", "zip"]
)
def test_harmless_archives_are_extracted_whole_or_stay_away_from_what_is_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)
    extract(tmp_path / "archive", tmp_path / "Named")
    assert everything(tmp_path) == ["Named/dataset.json", "archive"]
    with pytest.raises(DataError, match="there already"):
        extract(tmp_path / "archive", tmp_path / "Named")
    assert everything(tmp_path) == ["Named/dataset.json", "archive"]


def test_an_archive_without_a_folder_of_its_own_gets_one(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tar_of(("a", b"1"), ("b", b"2")))
    extract(tmp_path / "archive", tmp_path / "Named")
    assert everything(tmp_path / "Named") == ["a", "b"]


def test_an_extraction_that_is_interrupted_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive").write_bytes(tar_of(("Small/a", b"1"), ("Small/b", b"2")))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "archive", tmp_path / "Small", stop)
    assert everything(tmp_path) == ["archive"]


def test_names_are_found_in_any_case_and_the_nearest_is_offered() -> None:
    assert find_data_set("task09_spleen") is CATALOGUE["Task09_Spleen"]
    with pytest.raises(ConfigError, match=r"Task09_Spleen[\s\S]*medseqft fetch Task09_Spleen"):
        find_data_set("Task9_Splen")
    with pytest.raises(ConfigError, match="btcv"):
        find_data_set("§§§")


def test_only_the_decathlon_is_downloaded_and_every_other_set_says_how_to_get_it() -> None:
    direct = [name for name, one in CATALOGUE.items() if one.url]
    assert len(direct) == 10
    assert all(name.startswith("Task") for name in direct)
    assert all(re.fullmatch(r"[0-9a-f]{64}", CATALOGUE[name].sha256) for name in direct)
    others = [one for one in CATALOGUE.values() if not one.url]
    assert len(others) > 10
    for one in others:
        text = instructions(one)
        assert one.licence in text
        assert one.obtain in text
        assert "medseqft check" in text


def test_the_usual_preprocessing_is_told_as_a_task_takes_it() -> None:
    assert "usual: spacing: [1.25, 1.25, 5], window: [-1000, 500], patch: [192, 192, 16];" in about(
        CATALOGUE["covid19_20"]
    )
    assert "usual: the median spacing;" in about(CATALOGUE["Task10_Colon"])


def test_the_command_downloads_and_names_the_next_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "Small", entry(server))
    result = CliRunner().invoke(app, ["fetch", "small", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "CC0" in result.output
    assert f"medseqft check {tmp_path / 'Small'}" in result.output
    again = CliRunner().invoke(app, ["fetch", "small", "--out", str(tmp_path)])
    assert "there already" in again.output
    assert again.exit_code == 0


def test_the_command_says_how_to_get_the_others_and_exits_with_3(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "btcv", "--out", str(tmp_path / "data")])
    assert result.exit_code == 3
    assert "synapse.org" in result.output
    assert not (tmp_path / "data").exists()
