import copy
import pickle
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Conv3d as PeftConv3d
from torch import nn
from torch.nn import functional

from medseqft_kernels import LoRAConv3d, lora_conv3d, modules, replace_peft_layers, restore_peft_layers
from medseqft_kernels.tolerance import TOLERANCE, relative_error

PLAIN = ["embed", "block.conv", "narrow", "flat", "grouped", "same", "pointwise"]


class Net(nn.Module):
    """Every kind of convolution that both PEFT and the fused layer compute."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv3d(1, 4, 2, stride=2)
        self.block = nn.Sequential()
        self.block.add_module("conv", nn.Conv3d(4, 6, 3, padding=1, bias=False))
        self.narrow = nn.Conv3d(6, 4, 3, stride=2, padding=1)
        self.flat = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1), dilation=(2, 1, 1))
        self.grouped = nn.Conv3d(4, 4, 3, padding=1, groups=2)
        self.same = nn.Conv3d(4, 6, (3, 2, 3), padding="same")
        self.pointwise = nn.Conv3d(6, 2, 1, dilation=2, padding_mode="reflect")

    def forward(self, x):
        for layer in self.children():
            x = torch.tanh(layer(x))
        return x


def peft_model(net=None, dtype=torch.float64, seed=0, **settings):
    """A PEFT model on all convolutions, its adapters filled with numbers."""
    torch.manual_seed(seed)
    net = Net() if net is None else net
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv3d)]
    given = {"r": 4, "lora_alpha": 3, "target_modules": names, **settings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")
        model = get_peft_model(net, LoraConfig(**given))
    fill(model)
    return model.to(dtype)


def fill(model, seed=1):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=draw) - 0.5)


def image(dtype=torch.float64, side=8, channels=1):
    return torch.randn(2, channels, side, side, side, generator=torch.Generator().manual_seed(2)).to(dtype)


def results(model, x):
    """Output, gradient of the input, gradients of all parameters that have one."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    out.pow(2).sum().backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return {"out": out.detach(), "x": x.grad, **found}


def assert_equal(got, want, dtype):
    assert got.keys() == want.keys()
    for name in want:
        assert relative_error(got[name], want[name]) < TOLERANCE[dtype], name


def content(model):
    """All that a call could have changed."""
    state = model.state_dict(keep_vars=True)
    return {
        "classes": [type(module) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        **{name: (id(t), t.detach().numpy().tobytes(), t.requires_grad, t.grad) for name, t in state.items()},
    }


def short(names):
    return [name.removeprefix("base_model.model.") for name in names]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the fused operation that modules make."""
    made = []

    def counted(*arguments, **settings):
        made.append(arguments)
        return lora_conv3d(*arguments, **settings)

    monkeypatch.setattr(modules, "lora_conv3d", counted)
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}, {"lora_dropout": 0.3}],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_peft(settings, dtype, calls):
    net = Net()
    if "lora_bias" in settings:
        net.block.conv.bias = nn.Parameter(torch.rand(6))
    model = peft_model(net, dtype, **settings).eval()
    found = replace_peft_layers(model)
    assert short(found.replaced) == PLAIN
    assert found.left == {}
    x = image(dtype)
    want, got = results(model, x), results(found.model, x)
    assert len(calls) == len(PLAIN)
    assert sum("lora_" in name for name in want) >= 2 * len(PLAIN)
    assert_equal(got, want, dtype)


def test_the_callers_model_is_untouched_and_shares_no_memory_with_the_copy():
    model = peft_model()
    results(model, image())
    before = content(model)
    found = replace_peft_layers(model)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(1)
    back = restore_peft_layers(found.model)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.mul_(2)
    found.model.train(False)
    assert content(model) == before


def test_restoring_gives_pefts_classes_and_bits():
    model = peft_model()
    fused = replace_peft_layers(model).model
    before = content(fused)
    back = restore_peft_layers(fused)
    assert content(fused) == before
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    assert torch.equal(back(image()), model(image()))
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in model.parameters()]


def test_state_dict_keys_are_the_same_and_adapter_files_go_both_ways(tmp_path):
    model = peft_model(dtype=torch.float32)
    fused = replace_peft_layers(model).model
    assert list(fused.state_dict()) == list(model.state_dict())
    assert list(get_peft_model_state_dict(fused)) == list(get_peft_model_state_dict(model))
    with torch.no_grad():  # as if it had been trained
        fill(fused, seed=5)
    fused.save_pretrained(tmp_path / "fused")
    torch.manual_seed(0)
    with pytest.warns(match="groups > 1"):
        loaded = PeftModel.from_pretrained(Net(), tmp_path / "fused")
    assert relative_error(loaded(image(torch.float32)), fused(image(torch.float32))) < TOLERANCE[torch.float32]
    assert not torch.equal(loaded(image(torch.float32)), model(image(torch.float32)))
    set_peft_model_state_dict(fused, get_peft_model_state_dict(model))
    assert relative_error(fused(image(torch.float32)), model(image(torch.float32))) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("p", [0.4, 1.0])
def test_dropout_in_training_drops_what_peft_drops(p, calls):
    model = peft_model(lora_dropout=p).train()
    fused = replace_peft_layers(model).model
    torch.manual_seed(7)
    want = results(model, image())
    torch.manual_seed(7)
    got = results(fused, image())
    assert not calls
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_dropout_of_the_layer_alone_reaches_the_adapter_and_nothing_else(calls):
    layer = LoRAConv3d(nn.Conv3d(3, 4, 3, padding=1).double(), 2, 2, dropout=0.5)
    fill(layer)
    x = image(channels=3)
    torch.manual_seed(7)
    dropped = functional.dropout(x, 0.5)
    torch.manual_seed(7)
    got = layer(x)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    want = layer.base_layer(x) + functional.conv3d(functional.conv3d(dropped, a, padding=1), b)
    assert relative_error(got, want) < 1e-12
    assert not calls
    layer.eval()(x)
    assert len(calls) == 1


def test_pefts_own_methods_work_on_the_copy(calls):
    model = peft_model().eval()
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=8, target_modules=["narrow"]))
    fill(model, seed=3)
    fused = replace_peft_layers(model).model
    x, done = image(), 0
    for change in (
        lambda m: m.set_adapter("other"),
        lambda m: m.set_adapter("default"),
        lambda m: m.base_model.set_adapter(["default", "other"]),
        lambda m: m.set_adapter("default"),
        lambda m: m.base_model.disable_adapter_layers(),
        lambda m: m.base_model.enable_adapter_layers(),
        lambda m: m.delete_adapter("other"),
    ):
        change(model)
        change(fused)
        assert_equal(results(fused, x), results(model, x), torch.float64)
        done += 1
    assert done == 7
    fast = len(calls)
    with model.disable_adapter(), fused.disable_adapter():
        assert torch.equal(fused(x), model(x))
    assert len(calls) == fast > 0


def test_merging_the_copy_gives_a_plain_network_that_computes_the_same():
    net = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 2, 3))
    model = peft_model(net).eval()
    fused = replace_peft_layers(model).model
    want = model(image())
    fused.merge_adapter()
    assert relative_error(fused(image()), want) < 1e-12
    fused.unmerge_adapter()
    plain = fused.merge_and_unload()
    assert [type(module) for module in plain] == [nn.Conv3d, nn.Tanh, nn.Conv3d]
    assert relative_error(plain(image()), want) < 1e-12


def one(layer, **settings):
    return peft_model(nn.Sequential(layer), **settings).eval()


def merged():
    model = one(nn.Conv3d(1, 2, 3))
    model.merge_adapter()
    return model


def disabled():
    model = one(nn.Conv3d(1, 2, 3))
    model.base_model.disable_adapter_layers()
    return model


def with_two():
    model = one(nn.Conv3d(1, 2, 3))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "other"])
    fill(model)
    return model.double()


def with_none_active():
    model = peft_model(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1)))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["1"]))
    model.set_adapter("other")
    fill(model)
    return model.double()


def hooked():
    model = one(nn.Conv3d(1, 2, 3))
    model.base_model.model[0].base_layer.register_forward_hook(lambda module, inputs, out: 2 * out)
    return model


def with_a_forward_of_its_own():
    model = one(nn.Conv3d(1, 2, 3))
    base = model.base_model.model[0].base_layer
    base.forward = lambda x: functional.conv3d(x, base.weight)
    return model


def parametrized():
    model = one(nn.Conv3d(1, 2, 3))
    nn.utils.parametrizations.weight_norm(model.base_model.model[0].base_layer)
    return model


def in_two_dtypes():
    return one(nn.Conv3d(1, 2, 3).to(torch.bfloat16), dtype=None)


LEFT = {
    "dilation": lambda: one(nn.Conv3d(1, 2, 3, padding="same", dilation=2)),
    "pads with circular": lambda: one(nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular")),
    "DoraConv3dVariant": lambda: one(nn.Conv3d(1, 2, 3), use_dora=True),
    "merged": merged,
    "disabled": disabled,
    "2 adapters are active": with_two,
    "0 adapters are active": with_none_active,
    "hook": hooked,
    "its forward": with_a_forward_of_its_own,
    "ParametrizedConv3d": parametrized,
    "its weight is torch.bfloat16, its adapter torch.float32": in_two_dtypes,
}


@pytest.mark.parametrize("reason", LEFT)
def test_a_layer_that_one_call_cannot_represent_is_left_and_named(reason):
    model = LEFT[reason]()
    found = replace_peft_layers(model)
    name = "base_model.model.0"
    assert list(found.left) == [name]
    assert ("hook" if reason == "its forward" else reason) in found.left[name]
    assert name not in found.replaced
    layer = model.get_submodule(name)
    assert type(found.model.get_submodule(name)) is type(layer) is PeftConv3d
    x = image(torch.bfloat16 if "bfloat16" in reason else torch.float64)
    assert torch.equal(found.model(x), model(x))
    with pytest.raises(ValueError, match=f"stem: .*{'hook' if reason == 'its forward' else reason}"):
        LoRAConv3d.from_peft(layer, "stem")


def test_a_dilated_layer_is_one_that_peft_itself_cannot_run():
    model = one(nn.Conv3d(1, 2, 3, padding=2, dilation=2))
    found = replace_peft_layers(model)
    assert "dilation" in found.left["base_model.model.0"]
    for each in (model, found.model):
        with pytest.raises(RuntimeError, match="size"):
            each(image())


def test_a_subclass_of_pefts_layer_is_left_and_named():
    class Other(PeftConv3d):
        pass

    model = one(nn.Conv3d(1, 2, 3))
    model.base_model.model[0].__class__ = Other
    found = replace_peft_layers(model)
    assert "Other is not PEFT's own" in found.left["base_model.model.0"]


def test_replacing_twice_is_replacing_once_and_takes_what_has_become_possible():
    model = merged()
    first = replace_peft_layers(model)
    assert (first.replaced, len(first.left)) == ((), 1)
    first.model.unmerge_adapter()
    second = replace_peft_layers(first.model)
    assert (short(second.replaced), second.left) == (["0"], {})
    third = replace_peft_layers(second.model)
    assert (third.replaced, third.left) == (second.replaced, {})
    third.model.merge_adapter()
    fourth = replace_peft_layers(third.model)
    assert (fourth.replaced, len(fourth.left)) == ((), 1)
    assert type(fourth.model.base_model.model[0]) is PeftConv3d


def test_the_layer_alone_computes_and_names_its_state_as_pefts_does(calls):
    model = peft_model()
    seen = 0
    for name, peft in model.named_modules():
        if not isinstance(peft, PeftConv3d):
            continue
        frozen = peft.base_layer
        ours = LoRAConv3d(frozen, rank=4, alpha=3).double()
        assert list(ours.state_dict()) == list(peft.state_dict())
        ours.load_state_dict(peft.state_dict())
        taken = LoRAConv3d.from_peft(peft, name)
        x = image(channels=frozen.in_channels)
        want = results(peft, x)
        assert_equal(results(ours, x), want, torch.float64)
        assert_equal(results(taken, x), want, torch.float64)
        assert taken.base_layer.weight.data_ptr() == frozen.weight.data_ptr()
        assert taken.lora_A["default"].weight.data_ptr() != peft.lora_A["default"].weight.data_ptr()
        seen += 1
    assert seen == len(PLAIN)
    assert len(calls) == 2 * seen


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_the_layer_alone_keeps_padding_mode_and_dilation_for_its_adapter(mode):
    settings = {"stride": (1, 2, 1), "padding": 2, "dilation": 2, "padding_mode": mode}
    layer = LoRAConv3d(nn.Conv3d(3, 4, 3, **settings).double(), 2, 1)
    fill(layer)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        whole = nn.Conv3d(3, 4, 3, **settings).double()
        whole.weight.copy_(layer.base_layer.weight + 0.5 * torch.einsum("or,rcdhw->ocdhw", b.flatten(1), a))
        whole.bias.copy_(layer.base_layer.bias)
    assert relative_error(layer(image(channels=3)), whole(image(channels=3))) < 1e-12


def test_the_layer_starts_as_the_frozen_convolution_and_trains_its_adapter_alone(random_state_untouched):
    draw = torch.Generator().manual_seed(0)
    frozen = nn.utils.skip_init(nn.Conv3d, 3, 4, 3, dtype=torch.float64)
    for parameter in frozen.parameters():
        nn.init.uniform_(parameter, generator=draw)
    before = {name: each.detach().clone() for name, each in frozen.state_dict().items()}
    layer = LoRAConv3d(frozen, 2, 4, generator=draw)
    assert torch.equal(layer(image(channels=3)), frozen(image(channels=3)))
    trained = [name for name, each in layer.named_parameters() if each.requires_grad]
    assert trained == ["lora_A.default.weight", "lora_B.default.weight"]
    bound = 1 / (3 * 27) ** 0.5
    assert 0.9 * bound < layer.lora_A["default"].weight.detach().abs().max() <= bound
    optimizer = torch.optim.SGD([each for each in layer.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(image(channels=3)).pow(2).sum().backward()
        optimizer.step()
    assert not torch.equal(layer(image(channels=3)), frozen(image(channels=3)))
    assert all(torch.equal(frozen.state_dict()[name], before[name]) for name in before)
    assert all(each.requires_grad and each.grad is None for each in frozen.parameters())


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_groups_do_not_divide_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank: found {rank}, expected a positive multiple of 2"):
        LoRAConv3d(nn.Conv3d(4, 4, 3, groups=2), rank, 1)


def test_autocast_gives_what_peft_gives_in_bf16():
    model = peft_model(dtype=torch.float32).eval()
    fused = replace_peft_layers(model).model
    with torch.autocast("cpu", torch.bfloat16):
        want, got = model(image(torch.float32)), fused(image(torch.float32))
    assert got.dtype == want.dtype
    assert relative_error(got, want) < 3 * TOLERANCE[torch.bfloat16]  # seven layers and a tanh after each


def test_a_replaced_model_compiles_without_a_break(as_users_run_it):
    net = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 2, 1))
    fused = replace_peft_layers(peft_model(net, torch.float32).eval()).model
    layers = fused.base_model.model
    x = image(torch.float32, side=4)
    want = results(layers, x)
    layers.compile(fullgraph=True, backend="aot_eager")
    assert_equal(results(layers, x), want, torch.float32)


def test_a_replaced_model_can_be_copied_and_pickled():
    fused = replace_peft_layers(peft_model()).model
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert [type(module) for module in other.modules()] == [type(module) for module in fused.modules()]
        assert torch.equal(other(image()), fused(image()))
