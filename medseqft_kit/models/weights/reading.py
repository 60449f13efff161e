"""Reading a weight file without executing anything in it.

Safetensors hold tensors alone. PyTorch's own files are pickles: they are read with ``weights_only=True``, and what they
pickle besides tensors has to be on a short list of types that can do no harm. PyTorch refuses the rest, and so do we,
by name, before anything is unpickled (https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from medseqft_kit.errors import ModelError

WRAPPERS = ("network_weights", "state_dict", "net", "student", "teacher", "model")
"""Where training codes put the state dict, in the order in which they are looked for."""
PREFIXES = ("module.", "_orig_mod.", "backbone.")
"""What wrappers of a network put before every name; each is stripped once, the outermost first."""

_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
_KINDS = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
# NumPy 1 named its functions otherwise, and a file goes by the name that it was written with.
_HARMLESS: dict[str, tuple[str, Any]] = {
    **{f"numpy.{core}.multiarray.scalar": ("NumPy numbers", _SCALAR) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": ("NumPy arrays", _ARRAY) for core in ("core", "_core")},
    "numpy.ndarray": ("NumPy arrays", np.ndarray),
    "numpy.dtype": ("NumPy number formats", np.dtype),
    **{
        f"numpy.dtypes.{type(np.dtype(kind)).__name__}": ("NumPy number formats", type(np.dtype(kind)))
        for kind in _KINDS
    },
    "argparse.Namespace": ("command-line arguments", argparse.Namespace),
    **{f"{module}.PosixPath": ("paths", pathlib.PosixPath) for module in ("pathlib", "pathlib._local")},
}
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,  # of torch's unpickler
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Checkpoint:
    """A file's state dict, out of its wrappers.

    `tensors` go by their names without the prefixes that all of them had; `beside` is what the file says at its top
    besides the state dict; `notes` are sentences for people.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    beside: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def has(self, *names: str) -> bool:
        """Whether all of these tensors are there."""
        return all(name in self.tensors for name in names)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of PyTorch or of safetensors.

    Raises
    ------
    ModelError
        If it is missing or damaged, holds no state dict, or pickles a type that is not known to be harmless; nothing
        of it was executed then.
    """
    if not path.is_file():
        raise ModelError(f"the weights {path} cannot be read.", found="no such file", expected="a file of weights")
    content, notes = _torch_file(path) if _pickled(path) else (_safetensors(path), ())
    beside: Mapping[str, Any] = {}
    if isinstance(content, Mapping):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is not None:
            beside = {name: value for name, value in content.items() if name != wrapper}
            content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(
            f"{path} holds no weights.",
            found=f"a {type(content).__name__} without named tensors",
            expected=f"a state dict, bare or under one of {', '.join(WRAPPERS)}",
        )
    tensors = {str(name): _plain(value) for name, value in content.items() if isinstance(value, Tensor)}
    return Checkpoint(path, _stripped(tensors), beside, notes)


def _pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(16)
    # The header's length, with which safetensors begin, may look like a pickle; then comes its brace.
    return _zipped(path) or (start[:1] == b"\x80" and start[8:9] != b"{")


def _zipped(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its last bytes are those of a zip file, and damaged: reading it says how
        return True


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as problem:
        raise _damaged(path, str(problem)) from problem


def _torch_file(path: Path) -> tuple[Any, tuple[str, ...]]:
    whole = _zipped(path)
    try:
        beside_tensors = set(get_unsafe_globals_in_checkpoint(path)) if whole else _harmless_in_old(path)
        foreign = beside_tensors - _HARMLESS.keys()
        if foreign:
            raise _unsafe(path, sorted(foreign))
        with safe_globals(_registered()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except pickle.UnpicklingError as problem:
        named = re.search(r"GLOBAL (\S+)", str(problem))
        raise _unsafe(path, [named[1] if named else str(problem).strip().splitlines()[0]]) from problem
    except _UNREADABLE as problem:
        raise _damaged(path, str(problem)) from problem
    return content, _said(beside_tensors)


def _harmless_in_old(path: Path) -> set[str]:
    """Names of the list in a file from before PyTorch 1.6: four pickles, disassembled, before the bytes of tensors."""
    names = set()
    with path.open("rb") as file:
        for _ in range(4):
            names |= {
                str(text).replace(" ", ".") for code, text, _ in pickletools.genops(file) if code.name == "GLOBAL"
            }
    return names & _HARMLESS.keys()


def _registered() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    return [(found, name) for name, (_, found) in _HARMLESS.items()]


def _said(names: Iterable[str]) -> tuple[str, ...]:
    known = sorted(names)
    if not known:
        return ()
    kinds = ", ".join(dict.fromkeys(_HARMLESS[name][0] for name in known))
    return (f"besides tensors the file pickles {kinds} ({', '.join(known)}): harmless types, read from a fixed list",)


def _unsafe(path: Path, names: list[str]) -> ModelError:
    return ModelError(
        f"{path} pickles more than weights, and reading it could run code.",
        found=", ".join(names),
        expected="tensors, numbers and text; nothing of the file was executed",
        next_step="where you trust its author: load it with the code it comes from, and save its state dict alone",
    )


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(
        f"the weights {path} cannot be read.",
        found=problem.strip().splitlines()[0] if problem.strip() else "an empty or torn file",
        expected="a whole safetensors file, or a file of torch.save",
        next_step="download it again",
    )


def _plain(value: Tensor) -> Tensor:
    """Without the class (MONAI's MetaTensor, Parameter) that the tensor was saved as."""
    return value.detach().as_subclass(Tensor)


def _stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
