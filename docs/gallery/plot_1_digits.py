"""
Four methods on real digits
===========================

Which half of Adam does a small network on scikit-learn's handwritten digits need? The four
methods of the paper, each at the step size that ``svag compare`` chose for a longer training, over
300 steps and two seeds.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import svag
from svag.problems import get, load, seed_everything
from svag.report.line_styles import STYLES

problem = get("digits")
data = load(problem)

# %%
# A training is a loop like any other: the methods are ``torch.optim`` optimizers.


def train(method, lr, seed, steps=300):
    seed_everything(seed)
    model = problem.model()
    optimizer = getattr(svag, svag.METHODS[method].optimizer)(model.parameters(), lr=lr)
    order = torch.randint(len(data.train), (steps, problem.batch_size))
    losses = []
    for rows in order:
        batch = data.train.take(rows)
        optimizer.zero_grad()
        loss = problem.loss(model(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        found = model(data.test.inputs).argmax(-1)
    return losses, (found == data.test.targets).double().mean().item()


# %%
# Warm colours have the sign, solid lines are variance-adapted. The curves are running means over
# 30 mini-batches.

results = Path(svag.__file__).parents[1] / "results"
study = json.loads((results / "dissect" / "digits" / "compare.json").read_text())
step_sizes = {method: found["lr"] for method, found in study["methods"].items()}
print(step_sizes)

seeds = (0, 1)
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for method, lr in step_sizes.items():
    runs = [train(method, lr, seed) for seed in seeds]
    losses = torch.tensor([losses for losses, _ in runs]).mean(0)
    mean = losses.unfold(0, 30, 1).mean(-1)
    accuracy = sum(accuracy for _, accuracy in runs) / len(runs)
    style = STYLES[method]
    name = f"{svag.METHODS[method].name}, {accuracy:.1%} right"
    line = "-" if style.dash == "solid" else "--"
    axes.plot(range(30, 301), mean, line, color=style.color, label=name)
axes.set(yscale="log", xlabel="step", ylabel="training loss")
axes.legend(frameon=False)
plt.show()

# %%
# Two seeds at given step sizes decide nothing. ``svag compare digits`` searches the step sizes,
# runs fresh seeds, and says with intervals which half made the difference: :doc:`/which-half`.
