"""Run ``python -m tests.variance.random_networks --count N --seed S``."""

import argparse
import re
import time
from collections import Counter

import torch

from tests.variance.random_networks.build import build, draw
from tests.variance.random_networks.shrink import shrunk
from tests.variance.random_networks.trial import CRASH, INVALID, REFUSED, WRONG, Trial, attempt


def main() -> None:
    """Try networks and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=10, help="failures printed in full")
    parser.add_argument("--wrong", action="store_true", help="print no crash")
    parser.add_argument("--refused", action="store_true", help="print refused networks, too")
    parser.add_argument("--invalid", action="store_true", help="print what the grammar got wrong")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    trials = [attempt(build(draw(given.seed + k))) for k in range(given.count)]
    shown = [
        WRONG,
        *([CRASH] * (not given.wrong)),
        *([REFUSED] * given.refused),
        *([INVALID] * given.invalid),
    ]
    for trial in [t for t in trials if t.outcome in shown][: given.show]:
        print(described(trial))
    print("\n".join(summary(trials)))
    print(f"{time.perf_counter() - began:.0f} s")


def described(trial: Trial) -> str:
    """Return a failure with the smallest network that still shows it."""
    small = shrunk(trial)
    network = small.network
    run = f"mode={network.mode} batches={network.batches} training={network.training}"
    return (
        f"{'-' * 100}\n# seed {network.plan.seed}: {small.outcome}: {small.reason}\n"
        f"# examples {small.independent}; batch_dim={network.batch_dim} {run}"
        f" {'float32' if network.float32 else ''}\n# {', '.join(network.names)};"
        f" {network.loss.name}; inputs {network.opening.inputs} {network.sizes}\n"
        f"{network.source()}\n"
    )


def summary(trials: list[Trial]) -> list[str]:
    """Count outcomes, and reasons by kind."""
    counts = Counter((t.outcome, t.independent) for t in trials)
    lines = [f"{n:6} {outcome} ({kind})" for (outcome, kind), n in sorted(counts.items())]
    for outcome in (WRONG, CRASH, REFUSED, INVALID):
        some = [t for t in trials if t.outcome == outcome]
        for kind, n in Counter((_kind(t.reason), t.independent) for t in some).most_common(40):
            lines.append(f"{n:6} {outcome} ({kind[1]}): {kind[0]}")
    share, plain = refused_share(trials), refused_share([t for t in trials if not t.network.odd])
    lines.append(f"refused among independent: {share:.1%}, without the odd: {plain:.1%}")
    same = [equal for t in trials for equal in t.same]
    return [*lines, f"gradients bit-equal: {sum(same)} of {len(same)}", *culprits(trials)]


def culprits(trials: list[Trial]) -> list[str]:
    """Name the productions most often present where independent examples were not right."""
    bad, every = Counter[str](), Counter[str]()
    for trial in trials:
        if trial.independent == "alone" and trial.outcome != INVALID:
            names = {*trial.network.names, f"loss: {trial.network.loss.name}"}
            names.add(f"input: {trial.network.opening.name}")
            every.update(names)
            bad.update(names if trial.outcome != "right" else ())
    worst = sorted(bad, key=lambda name: -bad[name] / every[name] * min(1, every[name] / 5))
    return [f"{bad[n]:4} of {every[n]:4} not right: {n}" for n in worst[:25]]


def refused_share(trials: list[Trial]) -> float:
    """Return the share of independent networks that are refused."""
    alone = [t for t in trials if t.independent == "alone" and t.outcome != INVALID]
    return sum(t.outcome == REFUSED for t in alone) / max(1, len(alone))


def _kind(reason: str) -> str:
    """Drop numbers and names, so that messages of one kind count as one."""
    return re.sub(r"\d[\d.e+-]*", "#", reason)[:110]


if __name__ == "__main__":
    main()
