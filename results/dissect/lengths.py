"""Measures how the best constant step size depends on the length of training.

    python results/dissect/lengths.py

Every method trains on each of ``make_dissect.FITTED`` at nine step sizes, once, over the same
batches; the loss on held batches is noted at seven lengths. The records are ``lengths.jsonl`` next
to this file; ``docs/make_dissect.py`` makes the exponents of them. It takes a quarter of an hour.
"""

import json
import math
from collections.abc import Iterator

import torch
from run import HERE, PROBLEMS

from svag import problems
from svag.diagnosis.objective import Objective
from svag.diagnosis.race_training import ObjectiveTrainer
from svag.diagnosis.sampling import Sampling
from svag.entrants import entrant
from svag.lab.batches import Batches
from svag.lab.optimizers import build
from svag.lab.search import StepSizes
from svag.problems.seeding import seed_everything

RECORDS = HERE / "lengths.jsonl"
SHARES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
STEPS = {"digits": 600, "wine": 200, "iris_linear": 300, "digits_dense": 400, "picture": 500}
STEPS |= {"digits_autoencoder": 400, "diabetes": 200, "breast_cancer": 200}
STEPS |= {f"quadratic_{number:02d}": 500 for number in range(6)}


def step_sizes(name: str, sign: bool) -> range:
    """Return the numbers of the step sizes of the grid to train with."""
    low, high = (-8, 1) if sign else (-6, 3)
    return range(low + 2, high + 3) if name.startswith("quadratic") else range(low, high)


def losses_of(name: str) -> Iterator[dict]:
    """Yield a record for each method and step size: losses by length, as far as they are finite."""
    problem, steps = problems.get(PROBLEMS[name]), STEPS[name]
    data = problems.load(problem)
    seed_everything(0)
    objective = Objective(problem.model(), problem.loss)
    marks = {max(5, round(steps * share)) for share in SHARES}
    batches = Batches(
        data.train,
        problem.batch_size,
        seed=1,
        augment=problem.augment,
        prepare=problem.prepare,
    )
    with objective.dissected():
        sampling = Sampling(objective, batches)
        trainer = ObjectiveTrainer(objective, sampling, sampling.held(16))
        for key in ("m-sgd", "m-ssd", "m-svag", "adam"):
            for number in step_sizes(name, entrant(key).sign):
                lr, losses = StepSizes()[number], {}
                params = [p.detach() for p in objective.params]
                torch._foreach_copy_(params, objective.theta)
                optimizer = build(entrant(key), objective.params, lr=lr)
                with objective.writing():
                    for step in range(steps):
                        if not math.isfinite(objective.gradient(trainer._batch(0, step))):
                            break
                        optimizer.step()
                        if step + 1 in marks and math.isfinite(loss := trainer.start_loss()):
                            losses[step + 1] = loss
                yield {"problem": name, "method": key, "lr": lr, "losses": losses}


def main() -> None:
    """Write the records."""
    with RECORDS.open("w") as file:
        for name in STEPS:
            for record in losses_of(name):
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
