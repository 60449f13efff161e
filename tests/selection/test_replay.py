"""Races through the stored losses of 64 phantoms; the referee is what all draws of a seed say.

``phantom_losses.npz`` is what ``figures/mds_agreement.py measure`` made of Phantom01_Liver (64 cases of 48³ voxels,
seed 5) and an M_0 that 300 steps made of Phantom00_Unlabelled.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.selection.engine import Engine
from medseqft_kit.selection.race import Method, Rules
from medseqft_kit.selection.replay import DEVICES, LossTable, agrees, chosen_after, replay

SEEDS = {"approximate": 100, "certified": int(os.environ.get("MEDSEQFT_RACES", "300")) // 10}
"""Certified races take longer; `make soak` has 100 of them too."""
LIMITS = {"approximate": 0.10, "certified": 0.20}
"""Largest share of the passes that all draws would take, on average over K = 5, 10 and 20."""
STRICTLY = 0.9
"""Share of the races that choose the same even where the K-th and the next volume are ties (K = 5: 0.0002 apart)."""


@pytest.fixture(scope="module")
def phantoms() -> LossTable:
    return LossTable.read(Path(__file__).with_name("phantom_losses.npz"))


@pytest.mark.soak
@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("method", ["approximate", "certified"])
def test_races_choose_what_a_thousand_draws_choose_for_a_fraction_of_the_passes(
    method: Method, phantoms: LossTable
) -> None:
    shares = []
    for k in (5, 10, 20):
        races = [replay(phantoms, k, Rules(method), seed) for seed in range(SEEDS[method])]
        assert np.mean([agrees(verdict, truth) for verdict, truth in races]) >= 0.98
        assert np.mean([set(verdict.chosen) == truth for verdict, truth in races]) >= STRICTLY
        shares.append(np.mean([verdict.draws.sum() / (len(phantoms.cases) * 1000) for verdict, _ in races]))
    assert len(shares) == 3
    assert np.mean(shares) <= LIMITS[method]


def test_an_exhaustive_race_is_what_it_is_compared_with(phantoms: LossTable) -> None:
    for seed in range(3):
        verdict, truth = replay(phantoms, 10, Rules("exhaustive"), seed)
        assert set(verdict.chosen) == truth
        assert verdict.draws.tolist() == [1000] * 64


def test_seeds_take_other_blocks_and_none_twice(phantoms: LossTable) -> None:
    orders = [np.concatenate(phantoms.columns(1000, seed)) for seed in range(10)]
    assert all(len(set(order.tolist())) == 1008 for order in orders)  # with the pilot
    assert len({order.tobytes() for order in orders}) == 10


@pytest.mark.parametrize("device", ["paired draws", "even positions"])
def test_without_a_device_more_draws_are_needed(device: str, phantoms: LossTable) -> None:
    """How many of the ten are the right ones after 520 draws of every volume."""
    truth = frozenset(np.argsort(phantoms.losses.mean(axis=1))[:10].tolist())

    def right(devices: tuple[str, ...]) -> float:
        return float(np.mean([len(chosen_after(phantoms, 10, 520, seed, devices) & truth) for seed in range(60)]))

    whole = right(DEVICES)
    assert whole > 9.8
    assert right(tuple(each for each in DEVICES if each != device)) < whole - 0.05
    assert right(()) < whole - 0.3


def test_control_variates_take_off_what_they_explain() -> None:
    rng = np.random.default_rng(0)
    controls = rng.standard_normal((30, 1568, 1))
    losses = np.linspace(0, 1, 30)[:, None] + controls[:, :, 0] + 0.1 * rng.standard_normal((30, 1568))
    table = LossTable(tuple(map(str, range(30))), (8,) * 40 + (16,) * 24 + (32,) * 27, losses, controls)
    found = {
        each: [chosen_after(table, 5, 64, seed, each) == frozenset(range(5)) for seed in range(20)]
        for each in (DEVICES, DEVICES[:2])
    }
    assert sum(found[DEVICES]) >= 19
    assert sum(found[DEVICES[:2]]) <= 10


def test_a_table_is_measured_and_read_back(model: FoundationModel, noise, tmp_path: Path) -> None:
    volumes = noise("a", "b")
    engine = Engine(model, volumes, Precision("cpu", "fp32"), seed=0)
    table = LossTable.measured(engine, volumes.cases)
    assert table.losses.shape == (2, 1568)
    assert table.controls.shape == (2, 1568, 3)
    np.testing.assert_array_equal(table.losses[:, 16:24], engine.losses(["a", "b"], 2, 8).loss)
    table.write(tmp_path / "losses.npz")
    again = LossTable.read(tmp_path / "losses.npz")
    np.testing.assert_allclose(again.losses, table.losses, rtol=1e-7)
    assert (again.cases, again.sizes) == (table.cases, table.sizes)
