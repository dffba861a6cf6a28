"""How long a run takes, from a few of its steps; evaluating costs a third of training."""

import time
from dataclasses import replace

import torch

from svag.lab.session import Session
from svag.lab.studies import Study
from svag.problems import Data, Problem

SEED = 2**31 - 1
"""Seed of the steps that are timed, which no run has."""

_STEPS = 2
_LR = 1e-6
_EVALUATING = 1 / 3


def seconds_a_run(problem: Problem, data: Data, study: Study, threads: int) -> float:
    """Time a few steps of the first method; 0 where they raise, which its runs will report."""
    run = study.run(study.methods[0])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        session = Session(problem, data, replace(run, lr=_LR, seed=SEED))
        session.advance(1)
        started = time.perf_counter()
        session.advance(1 + _STEPS)
        a_step = (time.perf_counter() - started) / _STEPS
    except Exception:  # what is wrong with the problem is for its runs to report
        return 0.0
    finally:
        torch.set_num_threads(before)
    evaluated = (run.steps / run.eval_every + 1) * 2 * len(data.test) / run.batch_size
    return a_step * (run.steps + _EVALUATING * evaluated)
