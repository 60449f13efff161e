"""Files are read and never executed; what they pickle besides tensors is on a short list, and named."""

from __future__ import annotations

import argparse
import os
import pathlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import medseqft_kit as mk
from medseqft_kit.errors import ModelError
from medseqft_kit.models.weights.hub import located
from medseqft_kit.models.weights.reading import read_checkpoint


class Malicious:
    """What an attacker pickles: reading it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_a_malicious_pickle_is_refused_and_executes_nothing(zipped: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "model.pt"
    content = {"state_dict": {"weight": torch.zeros(2)}, "args": Malicious(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"(?s)could run code.*posix\.system.*nothing of the file was executed"):
        mk.load_foundation(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the attack is a real one
    assert mark.exists()


def test_a_whole_network_and_a_script_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"(?s)could run code.*torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "script.pt")
    with pytest.raises(ModelError, match="torchscript"):
        read_checkpoint(tmp_path / "script.pt")


def renamed_as_numpy_1(file: Path) -> None:
    """The same file as NumPy 1 would have written it: its functions live in `numpy.core`."""
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.parametrize("written", ["numpy-2", "numpy-1", "before-1.6"])
def test_numpy_numbers_arrays_paths_and_arguments_are_harmless_and_named(written: str, tmp_path: Path) -> None:
    beside = {
        "best_acc": np.float64(0.5),
        "_best_ema": np.float32(0.25),
        "seen": np.int64(3),
        "curve": np.arange(3.0),
        "args": argparse.Namespace(folder=pathlib.PosixPath("runs")),
    }
    file = tmp_path / "model.pt"
    zipped = written != "before-1.6"
    torch.save({"state_dict": {"weight": torch.ones(2)}, **beside}, file, _use_new_zipfile_serialization=zipped)
    if written == "numpy-1":
        renamed_as_numpy_1(file)
    checkpoint = read_checkpoint(file)
    assert checkpoint.beside["best_acc"] == 0.5
    assert checkpoint.beside["curve"].tolist() == [0, 1, 2]
    assert checkpoint.beside["args"].folder == pathlib.PosixPath("runs")
    (said,) = checkpoint.notes
    core = "numpy.core" if written == "numpy-1" else "numpy._core"
    for name in (f"{core}.multiarray.scalar", f"{core}.multiarray._reconstruct", "argparse.Namespace", "PosixPath"):
        assert name in said
    assert "harmless" in said


@pytest.mark.parametrize("wrapper", ["network_weights", "state_dict", "net", "student", "teacher", "model", None])
def test_a_state_dict_is_found_under_every_wrapper_and_out_of_its_prefixes(wrapper: str | None, tmp_path: Path) -> None:
    state = {f"module._orig_mod.backbone.{name}": torch.full((2,), 1.0) for name in ("a.weight", "backbone.b")}
    torch.save(state if wrapper is None else {"epoch": 1, wrapper: state}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert sorted(checkpoint.tensors) == ["a.weight", "backbone.b"]
    assert dict(checkpoint.beside) == ({} if wrapper is None else {"epoch": 1})


def test_a_prefix_that_some_names_lack_belongs_to_the_names(tmp_path: Path) -> None:
    save_file({"module.a": torch.zeros(1), "b.module.a": torch.zeros(2)}, tmp_path / "m.safetensors")
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    assert {name: len(value) for name, value in checkpoint.tensors.items()} == {"module.a": 1, "b.module.a": 2}
    assert checkpoint.notes == ()


def test_missing_torn_empty_and_weightless_files_are_refused_as_such(tmp_path: Path) -> None:
    torn, empty, none = tmp_path / "torn.pt", tmp_path / "empty.pt", tmp_path / "none.pt"
    torch.save({"a": torch.zeros(1000)}, torn)
    torn.write_bytes(torn.read_bytes()[:-200])
    empty.touch()
    torch.save({"epoch": 3}, none)
    for path, said in (
        (tmp_path / "absent", "no such file"),
        (torn, "cannot be read"),
        (empty, "cannot be read"),
        (none, "holds no weights"),
    ):
        with pytest.raises(ModelError, match=said):
            read_checkpoint(path)


def test_a_zip_file_that_says_it_is_on_several_disks_is_refused_as_damaged(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10)}, tmp_path / "m.pt")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    content[content.rindex(b"PK\x06\x07") + 16] = 7  # the locator of the directory's end: on how many disks
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.pt.*cannot be read"):
        read_checkpoint(tmp_path / "m.pt")


def test_a_tensor_that_refers_to_no_storage_is_refused_as_damaged(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10)}, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    assert content.count(b"tq\x07Q") == 1  # the storage's tuple, noted as number 7, is looked up
    (tmp_path / "m.pt").write_bytes(content.replace(b"tq\x07Q", b"tK\x07Q"))  # now the number itself is
    with pytest.raises(ModelError, match=r"m\.pt.*cannot be read"):
        read_checkpoint(tmp_path / "m.pt")


def test_a_hub_name_is_fetched_by_repository_and_file(tmp_path: Path) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / "there")

    assert located("hf://Luffy503/VoCo/deep/VoCo_B.pt", download) == tmp_path / "there"
    assert located(Path("hf://Luffy503/VoCo/VoCo_B.pt"), download) == tmp_path / "there"
    assert asked == [("Luffy503/VoCo", "deep/VoCo_B.pt"), ("Luffy503/VoCo", "VoCo_B.pt")]
    assert located("here.pt", download) == Path("here.pt")
    with pytest.raises(ModelError, match="names no file"):
        located("hf://Luffy503/VoCo", download)

    def offline(repository: str, file: str) -> str:
        raise OSError("no network\nmore")

    with pytest.raises(ModelError, match=r"(?s)cannot be fetched.*no network"):
        located("hf://a/b/c", offline)


def test_what_no_family_takes_is_refused_with_some_of_its_names(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2), "layer.bias": torch.zeros(2)}, tmp_path / "model_swinvit.pt")
    with pytest.raises(ModelError, match=r"(?s)which network.*layer\.weight.*docs/foundation-models"):
        mk.load_foundation(tmp_path / "model_swinvit.pt")
