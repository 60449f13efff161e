from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.selection.alternatives import herding, kmeans, random_cases
from medseqft_kit.selection.buffer import select
from medseqft_kit.selection.choose import choose
from medseqft_kit.selection.features import volume_features
from medseqft_kit.selection.race import Rules
from medseqft_kit.selection.scoring import score_volumes
from medseqft_kit.settings import Buffer as BufferSettings

CPU = Precision("cpu", "fp32")
EVERYTHING: dict[str, Any] = {"rules": Rules("exhaustive", max_draws=32), "precision": CPU}


def chosen(model: FoundationModel, volumes: Any, **settings: Any) -> Any:
    wanted = BufferSettings.model_validate({"k": 2, "max_draws": 32, **settings})
    return choose(model, volumes, wanted, precision=CPU)


def test_each_way_is_the_function_of_its_name(model: FoundationModel, noise: Callable[..., Any]) -> None:
    volumes = noise(*"abcdef")
    cases, features = volumes.cases, volume_features(model, volumes, precision=CPU)
    scores = score_volumes(model, volumes, 2, **EVERYTHING)
    wanted = {
        "random": random_cases(cases, 2, task="organ").cases,
        "kmeans": kmeans(cases, features, 2, task="organ").cases,
        "herding": herding(cases, features, 2, task="organ").cases,
        "mds": select(scores).cases,
        "highest": tuple(scores.sort_values("mean")["case"][::-1][:2]),
    }
    found = {way: chosen(model, volumes, selection=way, certainty="exhaustive")[0].cases for way in wanted}
    assert found == wanted
    assert len(set(found.values())) >= 3


def test_passes_and_scores_are_those_that_were_made(model: FoundationModel, noise: Callable[..., Any]) -> None:
    volumes = noise(*"abcdef")
    costs = {"random": 0, "kmeans": 48, "herding": 48, "highest": 6 * 32}
    for way, passes in costs.items():
        buffer, scores = chosen(model, volumes, selection=way)
        assert buffer.passes == passes
        assert (scores is None) == (way != "highest")
        assert buffer.settings["selection"] == way
        assert buffer.settings["k"] == 2
    assert len(costs) == 4


@pytest.mark.parametrize(("settings", "size"), [({"k": 4}, 4), ({"k": 9}, 6), ({"k": None, "share": 0.9}, 5)])
def test_the_buffer_has_the_size_that_the_settings_say(
    settings: dict[str, Any], size: int, model: FoundationModel, noise: Callable[..., Any]
) -> None:
    buffer, scores = chosen(model, noise(*"abcdef"), certainty="approximate", **settings)
    assert len(buffer.cases) == size
    assert np.isfinite(scores["mean"]).all()
    assert buffer.certificate["method"] == "approximate"
