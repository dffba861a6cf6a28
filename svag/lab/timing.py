"""Estimates the time of a run from a few steps; an evaluated example costs a third of training."""

import time
from dataclasses import replace

import torch

from svag.lab.session import Session
from svag.lab.studies import Study
from svag.problems import Data, Problem

SEED = 2**31 - 1
"""Seed of the timed steps; no run of a study has it."""

_STEPS, _SECONDS = 6, 5.0
_LR = 1e-6
_EVALUATING = 1 / 3


def seconds_a_run(problem: Problem, data: Data, study: Study, threads: int) -> float:
    """Return the estimated seconds of a run, from the fastest of a few steps of the first method.

    The fastest counts, since the first steps may compile. Exceptions of the problem's own code are
    passed on.

    Args:
        problem: the problem.
        data: its data.
        study: the study.
        threads: number of torch's threads.
    """
    run = study.run(study.methods[0])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        session = Session(problem, data, replace(run, lr=_LR, seed=SEED))
        times: list[float] = []
        while len(times) < min(_STEPS, run.steps) and sum(times) < _SECONDS:
            started = time.perf_counter()
            session.advance(session.step + 1)
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    whole = (len(data.train), len(data.test))
    some = [min(run.eval_examples or count, count) for count in whole]
    evaluated = (run.steps / run.eval_every + 1) * sum(some) + sum(whole)
    return min(times) * (run.steps + _EVALUATING * evaluated / run.batch_size)
