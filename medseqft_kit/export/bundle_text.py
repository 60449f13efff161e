"""What a bundle says of itself: metadata by MONAI's schema, a README, a note on licences."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import jinja2

from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.export.facts import WINDOWED, intensity, licence
from medseqft_kit.models.foundation import FoundationModel

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
FORMATS = {"CT": "hounsfield", "PET": "suv", "MR": "magnitude"}


def metadata(predictor: Predictor, which: str) -> dict[str, Any]:
    """`configs/metadata.json`, by MONAI's schema of July 2024."""
    task, structures = predictor.task, ", ".join(predictor.task.structures)
    values = {name: group[0] for name, group in task.structures.items()}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by MedSeqFT Kit"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").partition("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in ("nibabel", "pytorch-ignite", "scipy")},
        "name": task.name,
        "task": f"segmentation of {structures} in {' + '.join(task.channels)}",
        "description": f"{predictor.model.spec.architecture} fine-tuned for {task.name}, its stage's {which} model",
        "authors": "whoever ran the fine-tuning",
        "copyright": "see LICENSE",
        "data_type": "nibabel",
        "image_classes": ", ".join(task.channels),
        "label_classes": ", ".join(["0: background", *(f"{value}: {name}" for name, value in values.items())]),
        "pred_classes": ", ".join(["0: background", *(f"{value}: {name}" for name, value in values.items())]),
        "eval_metrics": {},
        "intended_use": "research; not a medical device, nothing here is cleared for diagnosis or treatment",
        "references": ["Ye et al., MedSeqFT, arXiv 2509.06096"],
        "network_data_format": {
            "inputs": {"image": _tensor(predictor, len(task.channels), dict(enumerate(task.channels)))},
            "outputs": {
                "pred": {
                    **_tensor(predictor, task.classes, dict(enumerate(["background", *task.structures]))),
                    "format": "segmentation",
                    "value_range": [],
                }
            },
        },
    }


def _tensor(predictor: Predictor, channels: int, meaning: dict[int, str]) -> dict[str, Any]:
    modalities = set(predictor.task.channels)
    windowed = modalities <= set(WINDOWED)
    (form,) = {FORMATS.get(each, "magnitude") for each in modalities} if len(modalities) == 1 else {"magnitude"}
    return {
        "type": "image",
        "format": form,
        "modality": " + ".join(predictor.task.channels),
        "num_channels": channels,
        "spatial_shape": list(predictor.model.spec.patch),
        "dtype": "float32",
        "value_range": list(predictor.preprocessing.scale) if windowed else [],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in meaning.items()},
    }


def readme(predictor: Predictor, which: str) -> str:
    """`docs/README.md`."""
    task, spacing = predictor.task, predictor.preprocessing.spacing
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), undefined=jinja2.StrictUndefined
    ).get_template("README.md.j2")
    return template.render(
        task=task.name,
        architecture=predictor.model.spec.architecture,
        which=which,
        values={name: group[0] for name, group in task.structures.items()},
        channels=[(modality, _in_words(predictor, modality)) for modality in task.channels],
        grid="each image's own spacing" if spacing is None else " × ".join(f"{size:g}" for size in spacing) + " mm",
        patch=" × ".join(map(str, predictor.model.spec.patch)),
        licence=licence(predictor.model),
    )


def _in_words(predictor: Predictor, modality: str) -> str:
    return "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in intensity(predictor, modality).items())


def licence_text(model: FoundationModel) -> str:
    """`LICENSE`: what is known, and what is not."""
    return (
        f"{licence(model)}\n\nThe configurations, scripts and texts of this bundle come from MedSeqFT Kit, under the\n"
        "Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0\n"
    )


def _version(name: str) -> str:
    return importlib.metadata.version(name)
