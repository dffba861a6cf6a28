"""To which gradient a variance belongs, and what ends that."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from svag.errors import InvalidOption, MissingVariance, SvagError
from svag.variance.grad_var import attach, clear, current, is_current, rescale


def make(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter with a gradient and its variance."""
    param = nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
    param.pow(2).sum().real.backward()
    attach(param, torch.tensor([0.5, 0.25], dtype=dtype))
    return param


def test_what_is_attached_is_current() -> None:
    param = make()
    assert is_current(param)
    assert current(param) is param.grad_var
    assert current(param).tolist() == [0.5, 0.25]


def test_it_has_the_dtype_of_the_gradient_and_no_history() -> None:
    param = make()
    attach(param, torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True))
    assert param.grad_var.dtype == torch.float32
    assert not param.grad_var.requires_grad


def test_it_is_not_copied_where_it_need_not_be() -> None:
    param, variance = make(), torch.ones(2)
    attach(param, variance)
    assert current(param).data_ptr() == variance.data_ptr()


def zero_in_place(param: Tensor) -> None:
    torch.optim.SGD([param]).zero_grad(set_to_none=False)


def backward(param: Tensor) -> None:
    param.sum().backward()


def another_gradient(param: Tensor) -> None:
    # As often as not it comes to lie where the last one lay.
    param.grad = None
    param.grad = torch.full_like(param, 3.0)


def by_hand(param: Tensor) -> None:
    param.grad_var = torch.ones_like(param)


STALE = {
    "zeroed": (lambda p: torch.optim.SGD([p]).zero_grad(), "no gradient"),
    "zeroed in place": (zero_in_place, "changed in place"),
    "accumulated": (backward, "changed in place"),
    "multiplied": (lambda p: p.grad.mul_(2.0), "changed in place"),
    "clipped by value": (lambda p: nn.utils.clip_grad_value_(p, 0.1), "svag.clip_grad_value_"),
    "written to": (lambda p: p.grad.view(-1)[:1].fill_(0.0), "svag.unscale_"),
    "another": (another_gradient, "older than its gradient"),
    "copy of the gradient": (lambda p: setattr(p, "grad", copy.deepcopy(p.grad)), "older than"),
    "cleared": (clear, "no gradient variance"),
    "by hand": (by_hand, "set by hand"),
}


@pytest.mark.parametrize("case", STALE)
def test_what_makes_it_stale(case: str) -> None:
    change, words = STALE[case]
    param = make()
    change(param)
    assert not is_current(param)
    with pytest.raises(MissingVariance, match=words):
        current(param)


def test_errors_name_the_remedy_and_are_what_torch_would_raise() -> None:
    param = nn.Parameter(torch.ones(3))
    backward(param)
    with pytest.raises(RuntimeError, match=r"shape \(3,\).*svag\.within_batch_variance\(model\)"):
        current(param)
    assert issubclass(MissingVariance, SvagError)


def test_gradients_that_follow_in_the_same_place_are_never_confused() -> None:
    param = make()
    for _ in range(50):
        param.grad = None
        backward(param)
        assert not is_current(param)


def test_the_stamp_keeps_no_gradient_alive() -> None:
    param = make()
    gradient = weakref.ref(param.grad)
    param.grad = None
    gc.collect()
    assert gradient() is None


def test_the_stamp_survives_that_nobody_in_python_holds_the_gradient() -> None:
    param = make()
    gc.collect()
    assert is_current(param)


def test_a_variance_needs_a_gradient_of_its_shape() -> None:
    with pytest.raises(MissingVariance, match="no gradient"):
        attach(nn.Parameter(torch.ones(2)), torch.ones(2))
    with pytest.raises(InvalidOption, match=r"\(3,\).*\(2,\)"):
        attach(make(), torch.ones(3))


@pytest.mark.parametrize("stale", [False, True])
def test_a_deep_copy_is_no_resurrection(stale: bool) -> None:
    model = nn.Linear(2, 1, bias=False)
    model(torch.ones(2)).sum().backward()
    attach(model.weight, torch.ones(1, 2))
    leaf = torch.ones(2, requires_grad=True)
    backward(leaf)
    attach(leaf, torch.ones(2))
    if stale:
        leaf.grad.mul_(2.0)
    # A leaf's copy has a copy of its gradient; a Parameter's has none.
    assert not is_current(copy.deepcopy(model).weight)
    assert not is_current(copy.deepcopy(leaf))
    assert is_current(leaf) is not stale


def test_a_copy_of_a_changed_gradient_is_no_resurrection() -> None:
    param = make()
    while param.grad._version < copy.deepcopy(param.grad)._version:
        param.grad.mul_(1.0)
    attach(param, torch.ones(2))
    version = param.grad._version
    param.grad.mul_(2.0)
    param.grad = copy.deepcopy(param.grad)
    assert param.grad._version == version
    assert not is_current(param)
    with pytest.raises(MissingVariance):
        current(param)


def test_models_and_gradients_still_pickle() -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(2)).sum().backward()
    attach(model.weight, torch.ones(1, 2))
    loaded = pickle.loads(pickle.dumps(model))
    assert not is_current(loaded.weight)
    loaded.weight.grad = pickle.loads(pickle.dumps(model.weight.grad))
    assert not is_current(loaded.weight)
    with pytest.raises(MissingVariance):
        current(loaded.weight)


@pytest.mark.parametrize("what", ["state_dict", "parameter", "gradient"])
def test_safe_checkpoints_still_load(what: str) -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(2)).sum().backward()
    attach(model.weight, torch.ones(1, 2))
    saved = {
        "state_dict": model.state_dict(),
        "parameter": {"weight": model.weight},
        "gradient": {"weight": model.weight.grad},
    }[what]
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["weight"], saved["weight"])


@pytest.mark.parametrize("factor", [0.5, torch.tensor(0.5), torch.tensor([0.5, 2.0])])
def test_rescaling_follows_the_gradient(factor: float | Tensor) -> None:
    param = make()
    param.grad.mul_(factor)
    assert not is_current(param)
    rescale(param, factor)
    squares = (torch.as_tensor(factor).expand(2) ** 2).tolist()
    assert current(param).tolist() == [0.5 * squares[0], 0.25 * squares[1]]


def test_rescaling_does_not_underflow_on_the_way() -> None:
    param = make()
    attach(param, torch.full((2,), 1e30))
    param.grad.mul_(1e-25)
    rescale(param, 1e-25)
    torch.testing.assert_close(current(param), torch.full((2,), 1e-20), rtol=1e-6, atol=0.0)


def test_a_complex_variance_is_a_pair_of_reals() -> None:
    param = make(torch.complex64)
    attach(param, torch.tensor([0.5 + 1.0j, 0.25 + 0.0j]))
    param.grad.mul_(3.0)
    rescale(param, 3.0)
    assert torch.view_as_real(current(param)).tolist() == [[4.5, 9.0], [2.25, 0.0]]


def test_clearing_takes_one_parameter_or_several_with_or_without_variance() -> None:
    first, second = make(), make()
    clear(first)
    clear([first, second, nn.Parameter(torch.ones(1))])
    assert not hasattr(first, "grad_var")
    assert not hasattr(second, "grad_var")


def test_models_can_move_with_variances_attached() -> None:
    model = nn.Linear(2, 1, bias=False)
    model(torch.ones(2)).sum().backward()
    attach(model.weight, torch.ones(1, 2))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model.weight.grad.dtype == torch.float64
