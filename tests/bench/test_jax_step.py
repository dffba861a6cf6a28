"""``svag bench jax``: what it measures and prints; never how long anything takes."""

import re
import sys

import pytest
import torch

pytest.importorskip("jax", reason="svag.jax needs jax: pip install 'svag[jax]'")
pytest.importorskip("optax", reason="svag.jax needs optax: pip install 'svag[jax]'")

import jax

import svag.jax as sj
from svag.bench import contestants, jax_step
from svag.errors import MissingPackage, UnknownName


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(contestants.LAYOUTS, "2c2d", lambda: [torch.Size([10, 7])] * 3)


@pytest.mark.parametrize("donated", [False, True])
def test_rows_have_a_ratio_to_optax_adam_and_the_bytes_of_their_state(donated):
    rows = {row.name: row for row in jax_step.measure("2c2d", rounds=2, donated=donated)}
    assert rows[jax_step.PEER].ratio == (1.0, 1.0, 1.0)
    assert all(row.ratio.median > 0 and row.donated == donated for row in rows.values())
    count = 4 / (3 * 70)
    kept = {name.removeprefix("svag.jax."): row.state - count for name, row in rows.items()}
    assert kept == pytest.approx(
        {"optax.adam": 8, "m_svag": 8, "adam": 8, "m_ssd": 4, "m_sgd": 4,
         "m_svag, bfloat16 state": 4}
    )  # fmt: skip


def test_a_step_moves_the_parameters_in_place_where_donated():
    for donated in (False, True):
        stepper = jax_step.JitStepper(sj.sgd(0.1), [(4,)], donated=donated)
        before, gradient = stepper._params[0], stepper._places[1][0]
        start = jax.numpy.array(before)
        stepper.prepare()
        stepper.run()
        assert before.is_deleted() == donated
        assert jax.numpy.allclose(stepper._params[0], start - 0.1 * gradient)


def test_the_command_prints_a_row_for_each(svag):
    code, printed, _ = svag("bench", "jax", "--rounds", 2, "--layout", "2c2d")
    assert code == 0
    assert len(re.findall(r"^2c2d +(?:no|yes) +(?:svag|optax)\.", printed, re.M)) == 12
    with pytest.raises(UnknownName, match=r"unknown layout '2c2'; known: .*Did you mean '2c2d'"):
        jax_step.choose(["2c2"])
    assert jax_step.choose([]) == ["40 x 500,000", "160 x 1,000", "WRN-40-4", "2c2d"]


def test_without_optax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(MissingPackage, match=r"svag\[jax\]"):
        jax_step.contestants()
