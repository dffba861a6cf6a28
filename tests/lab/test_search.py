"""The walk over the grid: what ends it, and what it finds, whatever the metric is like."""

import math

import pytest

from lab.synthetic import LOSS_RUN, RUN, record
from svag.lab.search import Search, StepSizes

LRS = StepSizes()


def walk(merit, run=RUN, start=0, at_start=0.1, given=()):
    """Walk; return the search and the numbers of the step sizes in the order tried."""
    search = Search(run, start, given)
    tried = []
    steps = search.walk()
    request = next(steps, None)
    while request is not None:
        tried += [run.lr for run in request.needed]
        answers = {
            one.id: record(one, merit(math.log10(one.lr)), start=at_start) for one in request.needed
        }
        try:
            request = steps.send(answers)
        except StopIteration:
            request = None
    return search, tried


def hill(top, width=1.0, height=0.9, floor=0.1):
    """An accuracy with one best step size, ``top`` in decades; diverges two decades above it."""

    def merit(decades):
        if decades > top + 2:
            return None
        return max(floor, height - 0.5 * ((decades - top) / width) ** 2)

    return merit


def test_the_grid():
    assert [LRS[index] for index in range(-4, 4)] == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    assert [LRS.nearest(lr) for lr in (1.0, 0.9, 0.04, 2e-3, 1e6)] == [0, 0, -3, -5, 12]
    assert [StepSizes((0.2, 0.05))[index] for index in (0, 1)] == [0.05, 0.2]
    assert [index in StepSizes((0.2, 0.05)) for index in (-1, 0, 1, 2)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("start", [-9, -4, 0, 3, 8])
@pytest.mark.parametrize("top", [-3.0, -0.5, 0.0, 1.0, 3.0])
def test_the_best_is_found_from_wherever_the_walk_begins(start, top):
    search, _ = walk(hill(top), start=start)
    assert search.learnt
    assert LRS[search.best] == pytest.approx(10**top, rel=0.2)


def test_far_from_anything_that_learns():
    """A loss scaled by 1e-12 needs a step size of 1e9; a walk from 1 gets there."""
    search, tried = walk(hill(9.0), start=0)
    assert LRS[search.best] == 1e9
    assert len(tried) == len(set(tried))


def test_upwards_ends_with_a_run_that_diverges():
    _, tried = walk(lambda decades: None if decades > 0.9 else 0.5 + decades / 10)
    assert max(tried) == 10.0
    assert 30.0 not in tried


def test_a_network_that_never_diverges_ends_the_walk_by_being_clearly_worse_twice():
    search, tried = walk(lambda decades: max(0.1, 0.9 - 0.5 * decades**2))
    assert sorted(tried) == [0.1, 0.3, 1.0, 3.0, 10.0]
    assert LRS[search.best] == 1.0


def test_a_plateau_ends_the_walk_after_four_that_are_no_better():
    search, tried = walk(lambda decades: 0.9 if decades < 5 else 0.1)
    assert tried == [1.0, 3.0, 10.0, 30.0, 100.0]
    assert LRS[search.best] == 100.0


def test_a_plateau_below_the_best_ends_the_walk_down():
    search, tried = walk(lambda decades: 0.9 if decades > -0.1 else 0.89, start=0)
    assert tried[:5] == [1.0, 3.0, 10.0, 30.0, 100.0]
    assert LRS[search.best] == 100.0
    assert min(tried) == 1.0


def test_equal_merits_choose_the_largest_step_size():
    search, _ = walk(lambda decades: 0.9 if -1.1 < decades < 0.1 else 0.2, start=-2)
    assert LRS[search.best] == 1.0


def test_equal_merits_choose_the_least_training_loss():
    """A metric on a dozen examples is perfect over decades; the training loss is not."""
    search = Search(RUN, -2)
    steps = search.walk()
    request = next(steps)
    while True:
        answers = {
            run.id: record(run, 1.0, train_loss=abs(math.log10(run.lr) + 0.5))
            for run in request.needed
        }
        try:
            request = steps.send(answers)
        except StopIteration:
            break
    assert LRS[search.best] == 0.3


def test_one_chance_dip_does_not_end_a_walk():
    def merit(decades):
        return 0.5 if abs(decades - 0.5) < 0.1 else max(0.1, 0.9 - 0.2 * abs(decades - 1))

    search, _ = walk(merit)
    assert LRS[search.best] == 10.0


def test_nothing_is_learnt_anywhere():
    search, tried = walk(lambda decades: 0.1)
    assert not search.learnt
    assert (min(tried), max(tried)) == (1e-10, 1e10)


def test_every_run_diverges():
    search, tried = walk(lambda decades: None)
    assert search.best is None
    assert not search.learnt
    assert max(tried) == 1.0


def test_what_diverged_at_the_start_is_left_downwards():
    search, _ = walk(hill(-4.0), start=0)
    assert LRS[search.best] == 1e-4


@pytest.mark.parametrize("shift", [0.0, -5.0, 100.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_shifted_or_scaled_loss_is_searched_alike(shift, scale):
    def loss(decades):
        return (
            None if decades > 1.6 else scale * (2 - 1.9 * math.exp(-((decades + 1) ** 2)) + shift)
        )

    plain, tried = walk(
        lambda decades: None if decades > 1.6 else 2 - 1.9 * math.exp(-((decades + 1) ** 2)),
        LOSS_RUN,
        at_start=2.2,
    )
    search, also_tried = walk(loss, LOSS_RUN, at_start=scale * (2.2 + shift))
    assert also_tried == tried
    assert search.best == plain.best
    assert LRS[search.best] == 0.1


def test_given_step_sizes_are_tried_all_at_once():
    search, tried = walk(hill(0.0), given=(0.5, 0.05, 5.0))
    assert tried == [0.05, 0.5, 5.0]
    assert search.lrs[search.best] == 0.5


def test_an_error_ends_the_search():
    search = Search(RUN, 0)
    steps = search.walk()
    request = next(steps)
    failed = record(request.needed[0], 0.5)
    failed.end["status"] = "error"
    with pytest.raises(StopIteration):
        steps.send({request.needed[0].id: failed})
    assert search.failed


def test_an_error_above_a_step_size_that_went_well_ends_the_walk_up():
    """As where a loss cannot take what a large step size makes of the outputs."""
    search = Search(RUN, 0)
    steps = search.walk()
    request = next(steps)
    while True:
        answers = {}
        for run in request.needed:
            answers[run.id] = record(run, 0.9 - 0.2 * math.log10(run.lr) ** 2)
            if run.lr > 5:
                answers[run.id].end["status"] = "error"
        try:
            request = steps.send(answers)
        except StopIteration:
            break
    assert not search.failed
    assert max(search.trials) == LRS.nearest(10.0)
    assert LRS[search.best] == 1.0


def test_a_metric_on_few_examples_does_not_end_a_walk_while_the_training_loss_falls():
    """Thirty examples: steps of 3.3 points. The loss still falls at each step size upwards."""
    accuracies = {-4: 0.57, -3: 0.57, -2: 0.70, -1: 0.57, 0: 0.60, 1: 0.83, 2: 0.90, 3: 0.2, 4: 0.1}
    search = Search(RUN, -4)
    steps = search.walk()
    request = next(steps)
    while True:
        answers = {}
        for run in request.needed:
            index = LRS.nearest(run.lr)
            accuracy = accuracies.get(index, 0.1)
            loss = 2.0 - 0.2 * (index + 8) if index <= 2 else 5.0
            answers[run.id] = record(run, accuracy, train_loss=loss)
        try:
            request = steps.send(answers)
        except StopIteration:
            break
    assert search.best == 2


def test_what_is_likely_to_be_needed_next_is_named():
    """For workers that would be idle; none of it is among what is needed."""
    search = Search(RUN, 0)
    request = next(search.walk())
    assert [run.lr for run in request.needed] == [1.0]
    assert [run.lr for run in request.ahead] == [3.0, 0.3, 10.0]
