"""`torch`: what PyTorch alone loads, the state dict of the MONAI network and a program made by ``torch.export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.export.checking import Segmenter, checked, probe
from medseqft_kit.export.facts import facts
from medseqft_kit.export.networks import PLAIN, plain_network, plain_state
from medseqft_kit.runs.atomic import write_json

STATE, PROGRAM, FACTS = "network.pt", "program.pt2", "model.json"


def write_torch(predictor: Predictor, which: str, folder: Path) -> dict[str, float]:
    """Write ``network.pt``, ``program.pt2`` and ``model.json``; the relative differences that were measured.

    The program takes a batch of any size of prepared patches (B, C, D, H, W) and gives logits. An architecture that is
    not MONAI's has the program alone.
    """
    model, task = predictor.model, predictor.task.name
    differences, network = {}, None
    if model.spec.architecture in PLAIN:
        network = plain_network(model, task)
        torch.save(plain_state(model, task), folder / STATE)
        plain = network.build()
        plain.load_state_dict(torch.load(folder / STATE, weights_only=True))
        differences[STATE] = checked("state dict", model, task, plain)
    torch.export.save(program_of(predictor), folder / PROGRAM)
    differences[PROGRAM] = checked("program", model, task, torch.export.load(folder / PROGRAM).module())
    described: dict[str, Any] = facts(predictor, which)
    if network is not None:
        described["network"] = {"class": f"monai.networks.nets.{network.name}", "arguments": dict(network.arguments)}
        described["network"]["patch_merging"] = "before MONAI 1.5" if network.legacy_merging else "MONAI's own"
    write_json(folder / FACTS, described)
    return differences


def program_of(predictor: Predictor) -> torch.export.ExportedProgram:
    """The network with the task's head, traced in float32 with a free batch size."""
    segmenter = Segmenter(predictor.model, predictor.task.name).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        return torch.export.export(segmenter, (probe(predictor.model, 2),), dynamic_shapes={"image": {0: batch}})
