"""Objectives by name."""

from __future__ import annotations

import pytest

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel, ModelSpec
from medseqft_kit.models.ssl_heads import SSL_HEADS
from medseqft_kit.objectives.masked import MaskedAutoencoding, MaskedReconstruction
from medseqft_kit.objectives.registry import OBJECTIVES, objective_of, specification

PATCH = (8, 8, 8)


def test_an_objective_has_the_settings_of_its_models_specification() -> None:
    model = FoundationModel.build(size="tiny", patch=PATCH, objective={"name": "masked", "ratio": 0.25, "block": 2})
    assert objective_of(model) == MaskedReconstruction(ratio=0.25, block=2)
    assert type(objective_of(FoundationModel.build(size="tiny", patch=PATCH, objective={"name": "mae"}))) is (
        MaskedAutoencoding
    )


def test_a_specification_names_every_setting_and_the_default_is_that_of_masked_reconstruction() -> None:
    assert specification("masked") == dict(ModelSpec().objective)
    assert specification("triple") == {"name": "triple", "temperature": 0.5}


def test_an_unknown_objective_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"(?s)no SSL head.*jigsaw.*masked, mae, triple, position"):
        FoundationModel(ModelSpec(size="tiny", patch=PATCH, objective={"name": "jigsaw"}))
    monkeypatch.setitem(SSL_HEADS, "jigsaw", SSL_HEADS["masked"])
    model = FoundationModel(ModelSpec(size="tiny", patch=PATCH, objective={"name": "jigsaw"}))
    with pytest.raises(ModelError, match=r"(?s)objective is unknown.*jigsaw.*masked, mae, triple, position"):
        objective_of(model)


@pytest.mark.parametrize(("name", "known"), [("masked", "ratio, block"), ("triple", "temperature")])
def test_an_unknown_setting_is_refused_by_name(name: str, known: str) -> None:
    model = FoundationModel(ModelSpec(size="tiny", patch=PATCH, objective={"name": name, "share": 0.5}))
    with pytest.raises(ModelError, match=f"(?s){name} has no such setting.*share.*{known}"):
        objective_of(model)


def test_an_objective_without_settings_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import make_dataclass

    monkeypatch.setitem(OBJECTIVES, "plain", make_dataclass("Plain", []))
    model = FoundationModel.build(size="tiny", patch=PATCH)
    model.spec = ModelSpec(objective={"name": "plain", "share": 1})
    with pytest.raises(ModelError, match="no settings"):
        objective_of(model)
