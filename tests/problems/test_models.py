"""The paper's networks: sizes, initial weights, pooling."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from svag.errors import InvalidOption
from svag.problems.models import CharLSTM, conv_2c2d, conv_3c3d, max_pool, wide_resnet

CASES = {
    "2c2d": (conv_2c2d, 3_274_634, (2, 1, 28, 28), (2, 10)),
    "3c3d": (conv_3c3d, 895_210, (2, 3, 32, 32), (2, 10)),
    "wrn": (wide_resnet, 8_972_340, (2, 3, 32, 32), (2, 100)),
    "lstm": (lambda: CharLSTM(82), 285_266, (2, 50), (2, 50, 82)),
}


@pytest.mark.parametrize("case", CASES)
def test_parameter_count_and_output_shape(case):
    build, parameters, inputs, outputs = CASES[case]
    model = build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    batch = torch.zeros(inputs, dtype=torch.long) if case == "lstm" else torch.rand(inputs)
    result = model(batch)
    assert result.shape == outputs
    result.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_seed_determines_the_weights(case):
    def weights():
        torch.manual_seed(3)
        return nn.utils.parameters_to_vector(p.contiguous() for p in CASES[case][0]().parameters())

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("size", [6, 12, 14, 28])
def test_pooling_is_tensorflow_same(size):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    padded = functional.pad(images, (0, 1, 0, 1), value=-math.inf)
    expected = functional.max_pool2d(padded, 3, stride=2)
    assert expected.shape[-1] == size // 2
    assert torch.equal(max_pool()(images), expected)


def layers(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def test_2c2d_weights_are_normal_cut_at_two_sigma():
    torch.manual_seed(0)
    model = conv_2c2d()
    large = layers(model, nn.Linear)[0].weight.detach()
    assert large.abs().max() <= 0.1
    # a normal distribution cut at 2 sigma has 0.8796 of its standard deviation
    assert large.std() == pytest.approx(0.05 * 0.8796, rel=0.01)
    assert large.mean() == pytest.approx(0, abs=1e-4)
    assert all((layer.bias == 0.05).all() for layer in layers(model, nn.Conv2d | nn.Linear))


def test_3c3d_weights_are_xavier():
    torch.manual_seed(0)
    model = conv_3c3d()
    conv = layers(model, nn.Conv2d)[2].weight.detach()
    assert conv.std() == pytest.approx(math.sqrt(2 / (9 * (96 + 128))), rel=0.02)
    dense = layers(model, nn.Linear)[0].weight
    bound = math.sqrt(6 / (1152 + 512))
    assert bound * 0.999 < dense.abs().max() <= bound
    assert all((layer.bias == 0).all() for layer in layers(model, nn.Conv2d | nn.Linear))


def test_wide_resnet_weights_and_batchnorm():
    torch.manual_seed(0)
    model = wide_resnet()
    convs = layers(model, nn.Conv2d)
    assert all(conv.bias is None for conv in convs)
    bound = math.sqrt(6 / (9 * (256 + 256)))
    assert bound * 0.999 < convs[-1].weight.abs().max() <= bound
    assert {norm.momentum for norm in layers(model, nn.BatchNorm2d)} == {0.1}
    assert not layers(model, nn.Dropout)
    layers_on_the_way = [conv for conv in convs if conv.kernel_size == (3, 3)]
    assert len(layers_on_the_way) + 1 == 40 - 3 + 1  # 3 shortcuts count as layers in the name


def test_wide_resnet_rejects_a_depth_it_cannot_have():
    with pytest.raises(InvalidOption, match="depth=41"):
        wide_resnet(depth=41)


def test_lstm_forget_bias_is_one_in_total():
    lstm = CharLSTM(82).lstm
    for layer in (0, 1):
        total = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
        assert total.tolist() == [0.0] * 128 + [1.0] * 128 + [0.0] * 256


def test_lstm_weights_are_glorot_over_both_kernels():
    torch.manual_seed(0)
    lstm = CharLSTM(82, embedding=64, hidden=128).lstm
    for name, inputs in (("weight_ih_l0", 64), ("weight_hh_l0", 64), ("weight_ih_l1", 128)):
        bound = math.sqrt(6 / (inputs + 128 + 4 * 128))
        assert bound * 0.999 < getattr(lstm, name).abs().max() <= bound


def test_lstm_is_stateless_and_drops_out_in_training_only():
    model = CharLSTM(82)
    text = torch.arange(100).reshape(2, 50) % 82
    assert not torch.equal(model(text), model(text))
    model.eval()
    first = model(text)
    assert torch.equal(first, model(text))
    assert torch.allclose(first[1:], model(text[1:]), atol=1e-6)


def test_lstm_of_one_layer():
    assert CharLSTM(5, layers=1)(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 5)
