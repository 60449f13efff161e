"""Sliding windows against a plain forward pass, MONAI's own padding, and a model whose output is known."""

import numpy as np
import pytest
import torch

from medseqft_kit.evaluation import inference
from medseqft_kit.evaluation.inference import predict_classes, predict_logits
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess_array

FP32 = Precision("cpu", "fp32")


class Recorder(FoundationModel):
    """Logits are the image and its negative; remembers what it was shown."""

    def forward(self, image, task):
        self.seen = [*getattr(self, "seen", []), image.detach().clone()]
        return torch.cat([-image, image], dim=1)


@pytest.fixture
def model():
    made = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=1)
    made.add_head_("organ", 3, seed=1)
    return made


@pytest.fixture
def recorder(model):
    made = Recorder(model.spec)
    made.add_head_("organ", 2)
    return made


def volume_of(shape, seed=0):
    image = np.random.default_rng(seed).random((1, *shape), np.float32) * 100 + 50
    return preprocess_array(image, np.diag([1.0, 1.0, 1.0, 1.0]), ["MR"], Preprocessing())


def test_a_volume_of_one_patch_is_one_forward_pass(model):
    volume = volume_of((8, 8, 8))
    with torch.no_grad():
        want = model.eval()(torch.from_numpy(volume.image.astype(np.float32))[None], "organ")[0]
    torch.testing.assert_close(predict_logits(model, "organ", volume, FP32), want, rtol=1e-5, atol=1e-6)


def test_logits_that_depend_on_their_voxel_alone_come_back_as_they_were(recorder):
    volume = volume_of((19, 8, 11))
    logits = predict_logits(recorder, "organ", volume, FP32)
    assert (logits.shape, logits.dtype, logits.device.type) == ((2, 19, 8, 11), torch.float32, "cpu")
    np.testing.assert_allclose(logits[1], volume.image[0].astype(np.float32), atol=1e-5)
    np.testing.assert_array_equal(
        predict_classes(recorder, "organ", volume, FP32), (volume.image[0] > 0).astype(np.uint8)
    )


def test_a_volume_smaller_than_the_patch_is_padded_with_air_and_cropped_back(recorder):
    volume = volume_of((3, 8, 5))
    assert volume.air[0] < -0.5
    logits = predict_logits(recorder, "organ", volume, FP32)
    assert logits.shape == (2, 3, 8, 5)
    (window,) = recorder.seen
    padding = torch.ones(8, 8, 8, dtype=torch.bool)
    padding[2:5, :, 1:6] = False
    np.testing.assert_array_equal(window[0, 0, 2:5, :, 1:6], volume.image[0].astype(np.float32))
    assert padding.sum() == 8**3 - 3 * 8 * 5
    assert (window[0, 0][padding] == volume.air[0]).all()
    np.testing.assert_allclose(logits[1], volume.image[0].astype(np.float32), atol=1e-5)


def test_windows_are_shown_in_batches_and_overlap_as_asked(recorder):
    predict_logits(recorder, "organ", volume_of((16, 8, 8)), FP32, overlap=0.5, batch=2)
    assert [len(windows) for windows in recorder.seen] == [2, 1]
    recorder.seen = []
    predict_logits(recorder, "organ", volume_of((16, 8, 8)), FP32, overlap=0.0, batch=4)
    assert [len(windows) for windows in recorder.seen] == [2]


def test_small_windows_are_shown_by_the_dozen(recorder):
    predict_logits(recorder, "organ", volume_of((24, 24, 24)), FP32)
    assert [len(windows) for windows in recorder.seen] == [125]


def test_batching_does_not_change_a_logit(model):
    volume = volume_of((13, 9, 10))
    one, many = (predict_logits(model, "organ", volume, FP32, batch=batch) for batch in (1, 7))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)  # oneDNN may take another algorithm for another batch


def test_bf16_runs_under_autocast_and_returns_fp32(model):
    logits = predict_logits(model, "organ", volume_of((8, 8, 8)), Precision("cpu", "bf16"))
    assert logits.dtype == torch.float32
    exact = predict_logits(model, "organ", volume_of((8, 8, 8)), FP32)
    assert 0 < (logits - exact).norm() / exact.norm() < 0.1
    # Blending in fp32 keeps a single window's bf16 values but for fp32 rounding; blending in bf16 would add 4e-3.
    torch.testing.assert_close(logits, logits.bfloat16().float(), rtol=1e-6, atol=0)


def test_what_is_too_large_for_the_device_is_stitched_in_main_memory(recorder, monkeypatch):
    devices = []
    make = inference.SlidingWindowInferer

    def remember(*arguments, **settings):
        devices.append(settings["device"])
        return make(*arguments, **settings | {"device": "cpu", "sw_device": "cpu"})

    monkeypatch.setattr(inference, "SlidingWindowInferer", remember)
    needed = 4 * (2 + 1) * 8 * 8 * 8
    for limit in (needed, needed - 1):
        monkeypatch.setattr(inference, "STITCHED_ON_DEVICE", limit)
        predict_logits(recorder, "organ", volume_of((8, 8, 8)), Elsewhere("cuda", "fp32"))
    assert devices == ["cuda", "cpu"]


class Elsewhere(Precision):
    """A device that this machine need not have."""

    def place(self, tensor):
        return tensor


def test_weights_gradients_modes_and_random_state_are_as_before(model):
    model.train()
    model.backbone.net.eval()
    model.ssl_head.weight.grad = torch.ones_like(model.ssl_head.weight)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    logits = predict_logits(model, "organ", volume_of((9, 8, 8)), FP32)
    assert not logits.requires_grad
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.ssl_head.weight.grad, torch.ones_like(model.ssl_head.weight))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
