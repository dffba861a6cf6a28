"""Operations that move rows about: each contribution is booked on the example it belongs to.

Sizes coincide on purpose: steps, widths and counts equal the number of examples or divide it, so
that whoever goes by shapes goes wrong.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

from tests.variance.attribution import (
    Calls,
    assert_refused,
    assert_right,
    assert_right_or_refused,
    every_size,
    layer,
    sequences,
    table,
    terms,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def again(*args: Any) -> Any:
    return checkpoint(*args, use_reentrant=False)


# Checkpoints


CHECKPOINTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layer": lambda m, h: again(m.b, h),
    "block": lambda m, h: h + again(lambda u: m.c(m.b(u).relu()), h),
    "two inputs": lambda m, h: again(lambda u, v: m.b(u) * v, h, h.sin()),
    "nested": lambda m, h: again(lambda u: m.c(again(m.b, u)), h),
    "one after another": lambda m, h: again(m.c, again(m.b, h)),
    "layer of its own twice": lambda m, h: again(m.b, again(m.b, h)),
    "sequence": lambda m, h: checkpoint_sequential([m.b, m.c], 2, h, use_reentrant=False),
    "transposed": lambda m, h: again(lambda u: m.b(u.transpose(0, 1)), h).transpose(0, 1),
    "joined features": lambda m, h: again(lambda *u: m.b(sum(u)), h, h.cos(), h.tanh()),
    "dropout": lambda m, h: again(lambda u: functional.dropout(m.b(u), 0.5), h),
    "closure": lambda m, h: again(lambda u: m.b(u) + h, h.sin()),
    "several outputs": lambda m, h: sum(again(lambda u: (m.b(u), m.c(u)), h)),
    "list": lambda m, h: again(lambda us: m.b(us[0]) * us[1], [h, h.cos()]),
}


@every_size
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_recomputed_layers(name: str, size: tuple[int, int, int]) -> None:
    x, width = sequences(size), size[2]
    model = Calls(lambda m, x: CHECKPOINTED[name](m, m.a(x)), **{n: layer(width) for n in "abc"})
    assert_right(model, _seeded(terms(x)))


@every_size
def test_recomputed_recurrence_and_lookup(size: tuple[int, int, int]) -> None:
    width, places = size[2], torch.randint(5, size[:2])
    model = Calls(
        lambda m, i: again(lambda u: m.gru(u)[0], again(m.embed, i)),
        embed=nn.Embedding(5, width),
        gru=nn.GRU(width, width, batch_first=True),
    )
    assert_right(model, terms(places))


@pytest.mark.parametrize("stop", [False, True])
def test_recomputation_with_and_without_an_early_stop(stop: bool) -> None:
    x = sequences((3, 3, 3))
    model = Calls(lambda m, x: again(m.b, m.a(x)), a=layer(3), b=layer(3))

    def loss(model: nn.Module) -> Tensor:
        with set_checkpoint_early_stop(stop):
            return terms(x)(model).sum()

    assert_right(model, terms(x), loss)


def _seeded(of: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], Tensor]:
    def seeded(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        return of(model)

    return seeded


# Rows that a mask, an index, a sort or a scatter moves


def put(m: Any, h: Tensor, mask: Tensor, how: str) -> Tensor:
    """Feed the tokens of a mask to a layer, and put them back."""
    fed = m.b(h[mask])
    if how == "masked_scatter":
        return h.masked_scatter(mask[..., None], fed)
    if how == "index_put":
        return h.index_put(mask.nonzero(as_tuple=True), fed)
    if how == "in place":
        out = torch.zeros_like(h)
        out[mask] = fed
        return out + h
    out = h.flatten(0, -2)
    rows = mask.flatten().nonzero().squeeze(1)
    if how == "index_add":
        return out.index_add(0, rows, fed).view_as(h)
    if how == "index_copy":
        return out.index_copy(0, rows, fed).view_as(h)
    return out.scatter_add(0, rows[:, None].expand_as(fed), fed).view_as(h)


WAYS = ("masked_scatter", "index_put", "in place", "index_add", "index_copy", "scatter_add")


@every_size
@pytest.mark.parametrize("how", WAYS)
def test_tokens_of_a_mask_put_back(how: str, size: tuple[int, int, int]) -> None:
    x = sequences(size)
    mask = torch.rand(size[:2]) > 0.5
    mask[0, 0] = True
    model = Calls(lambda m, x: put(m, m.a(x), mask, how), a=layer(size[2]), b=layer(size[2]))
    assert_right(model, terms(x))


@every_size
@pytest.mark.parametrize("how", WAYS)
def test_as_many_tokens_as_examples_put_back(how: str, size: tuple[int, int, int]) -> None:
    x = sequences(size)
    mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
    mask[torch.randperm(len(mask))[: size[0]]] = True
    mask = mask.view(size[:2])
    model = Calls(lambda m, x: put(m, m.a(x), mask, how), a=layer(size[2]), b=layer(size[2]))
    assert_right(model, terms(x))


@every_size
@pytest.mark.parametrize("count", ["as many as examples", "another"])
def test_head_on_the_tokens_of_a_mask(count: str, size: tuple[int, int, int]) -> None:
    """Some examples have several tokens, others none; the loss is a sum over tokens."""
    x, (batch, steps, width) = sequences(size), size
    picked = torch.randperm(batch * steps)[: batch if count.startswith("as") else batch - 1]
    mask = torch.zeros(batch * steps, dtype=torch.bool)
    mask[picked] = True
    owner = (torch.arange(batch * steps) // steps)[mask]
    mask = mask.view(batch, steps)
    model = Calls(lambda m, x: m.head(m.a(x)[mask]), a=layer(width), head=layer(width, 2))

    def of_owner(model: nn.Module) -> Tensor:
        return torch.zeros(batch).double().index_add(0, owner, model(x).sin().sum(1))

    assert_right(model, of_owner, lambda model: model(x).sin().sum())


SORTED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "index": lambda m, h, o: m.b(h[o])[o.argsort()],
    "index_select": lambda m, h, o: m.b(h.index_select(0, o)).index_select(0, o.argsort()),
    "gather": lambda m, h, o: torch.zeros_like(h).scatter(
        0, o[:, None].expand_as(h), m.b(h.gather(0, o[:, None].expand_as(h)))
    ),
    "take_along_dim": lambda m, h, o: torch.zeros_like(h).index_copy(
        0, o, m.b(torch.take_along_dim(h, o[:, None], 0))
    ),
    "index_add": lambda m, h, o: torch.zeros_like(h).index_add(0, o, m.b(h[o])),
    "repeats": lambda m, h, o: torch.zeros_like(h).index_add(
        0, o.repeat(2), m.b(h[o.repeat(2)]).cumsum(1)
    ),
}


@every_size
@pytest.mark.parametrize("name", SORTED)
def test_tokens_sorted_fed_and_put_back(name: str, size: tuple[int, int, int]) -> None:
    x, width = sequences(size), size[2]

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).flatten(0, 1)
        return SORTED[name](m, h, h[:, 0].argsort()).view(size)

    assert_right(Calls(call, a=layer(width), b=layer(width)), terms(x))


@every_size
@pytest.mark.parametrize("name", SORTED)
def test_examples_sorted_fed_and_put_back(name: str, size: tuple[int, int, int]) -> None:
    x, width = sequences(size).sum(1), size[2]

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return SORTED[name](m, h, h[:, 0].argsort())

    assert_right(Calls(call, a=layer(width), b=layer(width)), terms(x))


@every_size
def test_tokens_picked_within_each_example(size: tuple[int, int, int]) -> None:
    x, width = sequences(size), size[2]

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        best, every = h[..., 0].argmax(1), torch.arange(len(h))
        one = m.b(h[every, best])
        two = m.b(h.gather(1, best[:, None, None].expand(-1, 1, width))[:, 0])
        three = m.b(h.flatten(0, 1)[best + every * size[1]])
        return one + two * three

    assert_right(Calls(call, a=layer(width), b=layer(width)), terms(x))


@every_size
def test_a_parameter_scattered_by_the_same_mask_in_every_example(
    size: tuple[int, int, int],
) -> None:
    """Which entry of the parameter goes where depends on the examples before, and is fixed."""
    x = sequences(size)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:, :1] = True
    fixed = torch.randn(size, dtype=torch.float64)

    def call(m: Any, x: Tensor) -> Tensor:
        return m.a(x.masked_scatter(mask, m.p)) * fixed

    model = Calls(call, p=table(size[0], size[2]), a=layer(size[2]))
    assert_right_or_refused(model, terms(x))


def test_draws_in_place_with_learned_probabilities() -> None:
    """``bernoulli_(p)`` has no version out of place."""
    x = sequences((3, 4, 2))
    model = Calls(lambda m, x: m.a(x.clone().bernoulli_(m.p.sigmoid())), p=table(2), a=layer(2))
    assert_refused(model, lambda m: terms(x)(m).sum(), "bernoulli_", "'p'")


def test_an_error_of_a_parameter_copied_into_a_mean_names_the_operation() -> None:
    x = sequences((3, 4, 2))

    def call(m: Any, x: Tensor) -> Tensor:
        mean = x.mean(0)
        mean[0].copy_(m.p)
        return m.a(x + mean)

    model = Calls(call, p=table(2), a=layer(2))
    assert_refused(model, lambda m: terms(x)(m).sum(), "copy_ was given")


@pytest.mark.parametrize("images", [1, 2])
def test_images_scattered_into_the_tokens_of_their_text(images: int) -> None:
    batch, steps, width = 3, 4, 3
    tokens = torch.randint(1, 5, (batch, steps))
    tokens[:, :images] = 0
    pictures = torch.randn(batch * images, 6).double()

    def call(m: Any, tokens: Tensor, pictures: Tensor) -> Tensor:
        h, v = m.embed(tokens), m.look(pictures)
        return m.head(h.masked_scatter((tokens == 0)[..., None], v))

    model = Calls(call, embed=nn.Embedding(5, width), look=layer(6, width), head=layer(width, 2))
    assert_right_or_refused(model, terms(tokens, pictures))
    if images == 1:
        model.zero_grad()
        assert_right(model, terms(tokens, pictures))


@every_size
@pytest.mark.parametrize("how", ["assigned", "copied", "stacked"])
def test_time_major_buffer_filled_in_a_loop(how: str, size: tuple[int, int, int]) -> None:
    (batch, steps, width), x = size, sequences(size)

    def call(m: Any, x: Tensor) -> Tensor:
        h, every = x.new_zeros(batch, width), []
        out = x.new_zeros(steps, batch, width)
        for t in range(steps):
            h = torch.tanh(m.a(x[:, t]) + m.b(h))
            every.append(h)
            if how == "assigned":
                out[t] = h
            else:
                out[t].copy_(h)
        out = torch.stack(every) if how == "stacked" else out
        return m.head(out).transpose(0, 1)

    model = Calls(call, a=layer(width), b=layer(width), head=layer(width, 2))
    assert_right(model, terms(x))


# Tensors that belong to no example


CASTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "to": lambda p, x, h: p.to(x),
    "to the type": lambda p, x, h: p.to(x.device, x.dtype),
    "type_as": lambda p, x, h: p.type_as(x),
    "new_zeros": lambda p, x, h: x.new_zeros(p.shape) + p,
    "new_tensor": lambda p, x, h: p * x.new_tensor([2.0]),
    "new_full": lambda p, x, h: p * x.new_full(p.shape, 0.5),
    "new_empty": lambda p, x, h: x.new_empty(p.shape).fill_(1.5) * p,
    "zeros_like": lambda p, x, h: torch.zeros_like(p) + p,
    "zeros_like of an example": lambda p, x, h: torch.zeros_like(x[0]) + p,
    "ones_like of an example": lambda p, x, h: torch.ones_like(h[0]) * p,
    "full_like": lambda p, x, h: torch.full_like(p, 2.0) * p,
    "arange to": lambda p, x, h: p * torch.arange(len(p)).to(x)[:, None],
    "expand_as": lambda p, x, h: p.expand_as(x),
    "view_as": lambda p, x, h: p.flatten().view_as(x[0]),
}


@every_size
@pytest.mark.parametrize("name", CASTS)
def test_a_table_is_no_example_because_it_was_cast_like_one(
    name: str, size: tuple[int, int, int]
) -> None:
    x, width = sequences(size), size[2]

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.b(h + CASTS[name](m.p, x, h))

    assert_right(Calls(call, p=table(*size[1:]), a=layer(width), b=layer(width)), terms(x))


POSITIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "arange to": lambda x, t: torch.arange(t).to(x)[:, None],
    "arange of a type": lambda x, t: torch.arange(t, dtype=x.dtype)[:, None],
    "new_ones": lambda x, t: x.new_ones(t, 1),
    "zeros_like": lambda x, t: torch.zeros_like(x[0, :, :1]),
    "linspace": lambda x, t: torch.linspace(0, 1, t).type_as(x).unsqueeze(1),
}


@every_size
@pytest.mark.parametrize("name", POSITIONS)
def test_a_submodule_called_on_what_was_made_inside(name: str, size: tuple[int, int, int]) -> None:
    """Fixed positions belong to no example, whether or not there are as many."""
    x, (_, steps, width) = sequences(size), size
    model = Calls(
        lambda m, x: m.b(m.a(x) + m.places(POSITIONS[name](x, steps))),
        a=layer(width),
        b=layer(width),
        places=layer(1, width),
    )
    assert_right(model, terms(x))
