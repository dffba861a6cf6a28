"""How long a run takes, from a few of its steps; evaluating costs a third of training."""

import time
from dataclasses import replace

import torch

from svag.lab.session import Session
from svag.lab.studies import Study
from svag.problems import Data, Problem

SEED = 2**31 - 1
"""Seed of the steps that are timed, which no run has."""

_STEPS, _SECONDS = 6, 5.0
_LR = 1e-6
_EVALUATING = 1 / 3


def seconds_a_run(problem: Problem, data: Data, study: Study, threads: int) -> float:
    """Time a few steps of the first method, of which the fastest counts: the first ones compile.

    Whatever the problem's own code raises is passed on.
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
