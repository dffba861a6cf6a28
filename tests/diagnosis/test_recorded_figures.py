"""What the records hold for the page: fitted curves, ratios of worths, the histogram of eta."""

import json

import numpy as np
import pytest
import torch

from svag.diagnosis.improvement import improvement, worths
from svag.diagnosis.line_search import Decreases
from svag.diagnosis.noise_summary import ETA_EDGES, NoiseSummary
from svag.diagnosis.objective import Objective

CELLS = ("m-sgd", "m-svag", "m-ssd", "adam")
LRS = [0.05 * 2**k for k in range(9)]


def parabolas(key: str, scale: float, draws: int = 12) -> Decreases:
    """Decreases along noisy parabolas, a scale times slope alpha - alpha^2/2, the same draws."""
    rng = np.random.default_rng(5)
    lrs = np.array(LRS)
    rows = [scale * (slope * lrs - lrs**2 / 2) for slope in rng.uniform(0.8, 1.2, draws)]
    return Decreases(key, "plain", LRS, rows)


def test_the_fit_passes_through_the_points_and_follows_the_parabola() -> None:
    decreases = parabolas("adam", 3.0)
    found = improvement(decreases)
    at = np.geomspace(LRS[0], LRS[-1], len(found.fit))
    slope = float(np.mean([row[0] / 3 / LRS[0] + LRS[0] / 2 for row in decreases.rows]))
    np.testing.assert_allclose(found.fit[::5], found.curve, rtol=1e-9)
    np.testing.assert_allclose(found.fit, 3 * (slope * at - at**2 / 2), rtol=0.01, atol=0.01)


def test_the_fit_ends_where_losses_overflow() -> None:
    decreases = parabolas("adam", 1.0)
    decreases.rows[3][6:] = -np.inf
    found = improvement(decreases)
    np.testing.assert_allclose(found.fit[-1], found.curve[5], rtol=1e-9)
    assert found.curve[6] == -np.inf


def test_worths_are_ratios_of_the_improvements() -> None:
    scales = dict(zip(CELLS, (2.0, 3.0, 1.0, 5.0), strict=True))
    found = worths([parabolas(key, scale) for key, scale in scales.items()], CELLS)
    ratios = {(one.method, one.against): one.ratio for one in found}
    assert ratios == pytest.approx(
        {
            ("m-svag", "m-sgd"): 1.5,
            ("m-ssd", "m-sgd"): 0.5,
            ("adam", "m-sgd"): 2.5,
            ("adam", "m-ssd"): 5.0,
            ("adam", "m-svag"): 5 / 3,
        }
    )
    for one in found:  # the draws are the same, so that nothing is uncertain
        assert one.interval == pytest.approx((one.ratio, one.ratio))


def test_worths_without_the_four_cells_and_without_an_improvement() -> None:
    overflowing = parabolas("adam", 1.0)
    overflowing.rows[0][:] = np.nan
    uphill = Decreases("ssd", "plain", LRS, [-(1 + n) * np.array(LRS) for n in range(12)])
    found = worths([parabolas("sgd", 1.0), overflowing, uphill], ())
    assert [(one.method, one.against, one.interval) for one in found] == [("ssd", "sgd", None)]
    assert np.isnan(found[0].ratio)
    assert worths([], ()) == []


def noise_of(grads: torch.Tensor) -> NoiseSummary:
    """Show gradients, of shape (draws, entries), of one parameter split into two tensors."""
    model = torch.nn.ParameterList([torch.zeros(3), torch.zeros(grads.shape[1] - 3)])
    objective = Objective(model, batch_loss=lambda model, batch: model[0].sum())
    summary = NoiseSummary(objective, None)
    for grad in grads:
        summary.observe([grad[:3], grad[3:]])
    return summary


def test_the_histogram_counts_each_coordinate_once() -> None:
    torch.manual_seed(0)
    mean = torch.logspace(-3, 3, 400, dtype=torch.float64)
    grads = mean + torch.randn(50, 400, dtype=torch.float64)
    grads[:, :7] = 0
    *layers, overall = noise_of(grads).rows()
    assert [layer.histogram for layer in layers] == [None, None]
    assert overall.histogram is not None
    assert overall.histogram.edges == tuple(ETA_EDGES)
    shares = np.array(overall.histogram.shares)
    assert shares.sum() + overall.unresolved + overall.still == pytest.approx(1)
    assert overall.still == pytest.approx(7 / 400)
    variance = grads.var(dim=0).numpy()
    square = grads.mean(dim=0).numpy() ** 2 - variance / 50
    eta = [np.sqrt(v / q) for v, q in zip(variance, square, strict=True) if q > 0]
    for low, high, share in zip(ETA_EDGES[:-1], ETA_EDGES[1:], shares, strict=True):
        first, last = low == ETA_EDGES[0], high == ETA_EDGES[-1]
        inside = [1 for e in eta if (first or e >= low) and (last or e < high)]
        assert share == pytest.approx(len(inside) / 400)
    assert shares[0] > 0  # what lies below the first edge is in the first bin
    json.dumps(overall.histogram.shares, allow_nan=False)
