"""Damaged input of every kind: nothing but the documented errors, nothing that hangs, nothing that takes the memory."""

from __future__ import annotations

import os
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType

import pytest

from medseqft_kit.errors import MedSeqFTError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.sequence import Sequence
from tests.fuzz.targets import Target, targets

INPUTS = int(os.environ.get("MEDSEQFT_FUZZ_INPUTS", "25"))
"""For each target; `make soak` says more."""
SECONDS = 20
"""What takes longer hangs."""
MEMORY = 2 * 2**30
"""Bytes above what the process holds that no damaged input may ask for."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("corpus")
    data = write_phantoms(folder / "data", cases=5, shape=(24, 24, 24), seed=0)["Phantom01_Liver"]
    settings = {
        "strategy": {"buffer": {"k": 1, "max_draws": 16}, "lora": {"rank": 2}},
        "budget": {"steps": 2, "batch": 1, "checks": 1, "validation_cases": 1},
        "compute": {"precision": "fp32"},
    }
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    plan = TaskPlan(load_task(data), train_cases=2)
    Sequence(folder / "run", model, Settings.model_validate(settings)).fit([plan])
    return {target.name: target for target in targets(folder / "files", folder / "run", data)}


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """An alarm for what hangs, and a ceiling for what grows."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hangs)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.signal(signal.SIGALRM, handler)


NAMES = (
    "nifti_1", "nifti_1_gz", "nifti_2", "nifti_2_gz", "config", "config_text", "dataset_json", "foundation",
    "foundation_header", "checkpoint", "pickled_weights", "manifest", "cases", "scores", "buffer", "history",
)  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_damaged_input_ends_in_an_error_for_people_or_is_read(corpus: dict[str, Target], name: str) -> None:
    assert list(corpus) == list(NAMES)
    target, draw = corpus[name], Random(name)
    whole = target.file.read_bytes()
    ends: Counter[str] = Counter()
    try:
        for number in range(INPUTS):
            content = target.change(whole, draw)
            target.file.write_bytes(content)
            ends[_end(target, number, content)] += 1
    finally:
        target.file.write_bytes(whole)
    print(f"{name}: {ends.total()} inputs: {dict(ends.most_common())}")
    assert ends.total() == INPUTS
    assert _end(target, INPUTS, whole) == target.whole


def _end(target: Target, number: int, content: bytes) -> str:
    """How reading ended; anything but an error for people keeps its input and fails."""
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read()
    except MedSeqFTError as problem:
        return type(problem).__name__
    except BaseException as problem:
        kept = target.file.with_name(f"found_{target.name}_{number}")
        kept.write_bytes(content)
        raise AssertionError(
            f"{type(problem).__name__} ({problem}) on input {number} of {target.name}: {kept}"
        ) from problem
    finally:
        signal.alarm(0)
    return "read"
