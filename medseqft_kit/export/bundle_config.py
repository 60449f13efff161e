"""`configs/inference.json` of a MONAI bundle: from image to segmentation as the kit does it, in MONAI's terms.

Everything is written in MONAI's own components but for two things that it has none for, which are scripts of the
bundle: padding with air (:mod:`~medseqft_kit.export.air`), and z-scores over part of the voxels or channels of several
modalities (:mod:`~medseqft_kit.volumes.intensity`). Preprocessing and its way back are those of
:mod:`~medseqft_kit.volumes.preprocess`, in the same order and number formats.
"""

from __future__ import annotations

from typing import Any

from medseqft_kit.evaluation.inference import windows_at_once
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.export.facts import WINDOWED, window
from medseqft_kit.export.networks import plain_network
from medseqft_kit.models.swin_merging import MERGING

FORGET_CHANNEL_AXIS = "$lambda image: image.meta.update(original_channel_dim=float('nan')) or image"
"""Else MONAI 1.6.1 saves a segmentation, which has no channels, as if one of its three axes were one."""
SPACING_TRANSFORM = {
    "_target_": "Spacingd",
    "keys": "image",
    "mode": "bilinear",
    "padding_mode": "border",
    "dtype": "$np.float32",
}


def inference_config(predictor: Predictor) -> dict[str, Any]:
    """The whole configuration, by the names that MONAI asks of an inference workflow."""
    return {
        "imports": ["$import glob", "$import os", "$import numpy as np", *_imports(predictor)],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'images')",
        "output_dir": "$os.path.join(@bundle_root, 'predictions')",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": _datalist(len(predictor.task.channels)),
        "network_def": _network(predictor),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(predictor)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "scripts.air.AirPaddedInferer",
            "roi_size": list(predictor.model.spec.patch),
            "sw_batch_size": windows_at_once(predictor.model.spec.patch),
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(predictor)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$os.path.join(@bundle_root, 'models', 'model.pt')",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _imports(predictor: Predictor) -> list[str]:
    """What expressions of this configuration take from the bundle's scripts."""
    legacy = plain_network(predictor.model, predictor.task.name).legacy_merging
    merging = ["$from scripts.swin_merging import LegacyPatchMerging"] if legacy else []
    return merging + ([] if only_window(predictor) else ["$from scripts.intensity import normalise"])


def _datalist(channels: int) -> str:
    """Images of one channel are files; of several, `NAME_0000.nii.gz` and so on, or files with a fourth axis."""
    found = "sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))"
    if channels == 1:
        return f"$[{{'image': file}} for file in {found}]"
    first = f"[file for file in {found} if '_0000.nii' in file]"
    files = f"[file.replace('_0000.nii', f'_{{channel:04d}}.nii') for channel in range({channels})]"
    return f"$[{{'image': {files}}} for file in {first}] or [{{'image': file}} for file in {found}]"


def _network(predictor: Predictor) -> dict[str, Any]:
    network = plain_network(predictor.model, predictor.task.name)
    merging = {MERGING: "$LegacyPatchMerging"} if network.legacy_merging else {}
    return {"_target_": network.name, **network.arguments, **merging}


def only_window(predictor: Predictor) -> tuple[float, float] | None:
    """The window that all channels are clipped to, if there is one and nothing else is done to them."""
    windows = {window(predictor, each) if each in WINDOWED else None for each in predictor.task.channels}
    return windows.pop() if len(windows) == 1 else None


def _preprocessing(predictor: Predictor) -> list[dict[str, Any]]:
    spacing, shared = predictor.preprocessing.spacing, only_window(predictor)
    steps: list[dict[str, Any]] = [{"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}]
    if len(predictor.task.channels) > 1:
        steps.append({"_target_": "Lambdad", "keys": "image", "func": FORGET_CHANNEL_AXIS})
    if shared is not None:
        low, high = predictor.preprocessing.scale
        scaled = {"a_min": shared[0], "a_max": shared[1], "b_min": low, "b_max": high, "clip": True}
        steps.append({"_target_": "ScaleIntensityRanged", "keys": "image", **scaled})
    else:
        chosen = predictor.preprocessing
        arguments = f"{list(predictor.task.channels)}, {chosen.window}, {chosen.scale}"
        steps.append(
            {
                "_target_": "Lambdad",
                "keys": "image",
                "func": "$lambda image: monai.utils.convert_to_dst_type("
                f"normalise(image.numpy(), {arguments}), image)[0]",
            }
        )
    steps.append({"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None})
    if spacing is not None:
        steps.append({**SPACING_TRANSFORM, "pixdim": list(spacing)})
    return steps + [
        {"_target_": "CastToTyped", "keys": "image", "dtype": f"$torch.{name}"} for name in ("float16", "float32")
    ]


def _postprocessing(predictor: Predictor) -> list[dict[str, Any]]:
    values = [0, *(group[0] for group in predictor.task.structures.values())]
    return [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(values))),
            "target_labels": values,
            "dtype": "$np.int16",
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "$np.int16",
            "resample": False,
            "separate_folder": False,
        },
    ]
