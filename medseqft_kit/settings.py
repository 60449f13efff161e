"""Every setting of a run with its default: the only place where defaults live.

Pydantic models, immutable; unknown keys are refused. :mod:`medseqft_kit.config` reads them from a YAML file. Choices
that the paper leaves open are marked **[choice]**; docs/method.md says what is certain.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Field(gt=0)


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Buffer(Section):
    """The buffer. `k` of None means `share` of the training cases, at least 4."""

    k: int | None = Field(None, gt=0, description="cases kept for each task; None: `share` of the training cases")
    share: float = Field(0.1, gt=0, le=1, description="share of the training cases kept where `k` is not given")
    scope: Literal["all", "current"] = Field("all", description="[choice] B_1 ∪ … ∪ B_t, or B_t alone")
    selection: Literal["mds", "highest", "random", "kmeans", "herding"] = Field(
        "mds", description="[choice] the K lowest MDS scores; the others are for ablation"
    )
    certainty: Literal["certified", "approximate", "exhaustive"] = Field(
        "certified", description="when a race for the K lowest scores decides; `exhaustive`: all draws of every volume"
    )
    delta: float = Field(0.05, gt=0, lt=1, description="probability that a certified choice is wrong")
    tolerance: float = Field(0.0, ge=0, description="scores that differ by less are ties")
    max_draws: int = Field(1000, ge=16, multiple_of=8, description="most crops and masks of a volume")


class Distill(Section):
    """Feature distillation of stage 1, and the distance of stage 2."""

    weight: float = Field(0.3, ge=0, description="λ of L_seg + λ · L_kd")
    teacher: Literal["previous", "pretrained"] = Field("pretrained", description="[choice] M_{t-1} or M_0")
    distance: Literal["mse", "cosine", "l1"] = Field("mse", description="[choice] distance of features")
    layers: tuple[str, ...] = Field((), description="[choice] stage_0 …, decoded; empty: all")


class Lora(Section):
    """LoRA-based distillation (stage 2)."""

    rank: Annotated[int, Positive] | Literal["auto"] = Field(
        16, description="[choice] rank r; `auto`: for each layer as many as hold `energy` of M'_t − M_{t-1}"
    )
    energy: float = Field(0.9, gt=0, le=1, description="[choice] `rank: auto`: share of the squared singular values")
    largest_rank: int = Field(64, gt=0, description="[choice] `rank: auto`: no rank exceeds it")
    initial: Literal["zero", "delta"] = Field(
        "delta", description="[choice] where the adapters start: at zero, or at the truncated SVD of M'_t − M_{t-1}"
    )
    orthogonal: bool = Field(False, description="[choice] keep A off what earlier adapters span, and train B alone")
    alpha: float | None = Field(None, gt=0, description="[choice] scaling α / r; None: α = r")
    targets: tuple[str, ...] = Field((), description="[choice] module names; empty: all convolutions and linear layers")
    train_norms: bool = Field(True, description="train the affine parameters of norm layers too")
    learning_rate: float = Field(3e-3, gt=0, description="[choice] peak learning rate of the adapters")
    loss: Literal["features", "logits", "both"] = Field("both", description="[choice] what the adapters reproduce")
    anchor: float = Field(0.0, ge=0, description="[choice] weight of distilling from M_0 too, on buffer crops")
    fidelity: float = Field(
        0.98, gt=0, le=1, description="stop when the adapters' whole step reaches this share of M'_t"
    )
    longest: float = Field(2.0, ge=0, description="at most this many times the steps of stage 1; 0: as they start")
    share: float = Field(
        0.5, gt=0, le=1, description="[choice] share of the adapters' step that M_t takes; 1: all of it"
    )

    @property
    def uniform_rank(self) -> int:
        """`rank`; for `auto`, where there is no difference to read ranks from, the largest one."""
        return self.largest_rank if self.rank == "auto" else self.rank


class Retention(Section):
    """The rivals among the strategies; each takes its own keys, and a weight of 0 makes it `sequential`."""

    l2_sp: float = Field(0.01, ge=0, description="`l2_sp`: α of α/2 · ‖w − w_{t-1}‖²")
    ewc: float = Field(100.0, ge=0, description="`ewc`: λ of λ/2 · Σ F (θ − θ*)²")
    fisher_crops: int = Field(32, gt=0, description="`ewc`: labelled crops that the Fisher information is taken over")
    lwf: float = Field(1.0, ge=0, description="`lwf`: weight of what the earlier heads said")
    temperature: float = Field(2.0, gt=0, description="`lwf`: softens what they said")
    replay: float = Field(1.0, ge=0, description="`replay`: weight of the loss on kept cases; `buffer` says how many")
    consistency: float = Field(1.0, ge=0, description="`mean_teacher`: weight of the consistency")
    decay: float = Field(0.99, ge=0, lt=1, description="`mean_teacher`: of the moving average, at a step")


class Strategy(Section):
    """Which strategy, and the settings of its parts."""

    name: str = Field("medseqft", description="see `medseqft_kit.tuning.strategies`")
    buffer: Buffer = Buffer()
    distill: Distill = Distill()
    lora: Lora = Lora()
    retention: Retention = Retention()
    matched: float = Field(2.5, gt=0, description="`parallel_matched`: times the steps of stage 1")
    predictor: Literal["adapted", "merged", "agreement"] = Field(
        "adapted",
        description="[choice] which model a headline takes: M'_t or M_t, both are reported; `agreement`: M_0 and M'_t"
        " mixed for each case (T3), reported besides",
    )


class Budget(Section):
    """How long a stage trains."""

    steps: int = Field(400, gt=0, description="optimiser steps of stage 1 for each task")
    equalise: Literal["steps", "images"] = Field(
        "steps", description="`images`: strategies that see more crops in a task take fewer steps"
    )
    batch: int = Field(4, gt=0, description="task crops in a batch; a distilling step sees as many buffer crops")
    batches: int = Field(
        1,
        gt=0,
        description="batches in a step, each with a loss of its own, whose mean is descended; processes share them",
    )
    checks: int = Field(4, gt=0, description="validations during a phase")
    validation_cases: int = Field(8, gt=0, description="validation cases for each of them")


class Optimizer(Section):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = Field(3e-3, gt=0, description="peak, backbone; short runs need a high one")
    head_learning_rate: float = Field(1e-2, gt=0, description="peak, task head")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW, decoupled")
    sharpness: float = Field(0.0, ge=0, description="ρ of sharpness-aware full fine-tuning (SAM); 0: plain")
    clip: float = Field(12.0, gt=0, description="largest gradient norm")


class SplitSection(Section):
    """Train / validation / test."""

    seed: int = Field(0, description="the split depends on this one and on the patients alone")
    fractions: tuple[float, float, float] = Field((0.6, 0.2, 0.2), description="train, validation, test; they sum to 1")
    group: str = Field("case", description="regular expression whose first group names the patient; `case`: the id")
    fold: int | None = Field(None, ge=0, description="cross-validation fold; nnU-Net's splits_final.json where present")


class Augment(Section):
    """Crop augmentation of segmentation training."""

    enabled: bool = Field(True, description="augment the training crops at all")
    flip_axes: tuple[int, ...] = Field((), description="array axes (RAS) to flip; none where left and right are labels")
    gin: float = Field(
        0.0, ge=0, le=1, description="share of the crops that go through GIN, a random network that bends intensities"
    )


class Predict(Section):
    """What is done when a finished model predicts, in the run's own evaluation and by `predict`; all of it is off."""

    flips: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        (), description="axes of test-time flips (0 left-right, 1 back-front, 2 down-up): 2ⁿ predictions averaged"
    )
    largest_component: tuple[str, ...] = Field(
        (), description="structures of which the largest connected component alone is kept"
    )


class Compute(Section):
    """Where and how fast; pinned in the manifest, since equal bits rest on it."""

    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1` …; `auto`: CUDA where there is one")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="`auto`: bf16 on CUDA and on CPUs with AMX, else fp32"
    )
    threads: int = Field(1, gt=0, description="CPU threads of a training process")
    workers: int = Field(1, ge=0, description="threads that cut crops ahead of the training")
    processes: int = Field(2, gt=0, description="runs of a comparison side by side")
    recompute: bool = Field(
        False,
        description="keep no activations of the network's blocks: less memory, one forward pass more, same values",
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="seconds between checkpoints")
    tracker: str = Field(
        "tensorboard", description="what shows losses as they come: `tensorboard`, another of Accelerate's, or `none`"
    )


class Settings(Section):
    """Everything about a run that is not data or weights."""

    split: SplitSection = SplitSection()
    strategy: Strategy = Strategy()
    budget: Budget = Budget()
    optimizer: Optimizer = Optimizer()
    augment: Augment = Augment()
    predict: Predict = Predict()
    compute: Compute = Compute()
    seed: int = Field(0, description="initialisation, sampling, augmentation, and which cases `train_cases` keeps")
