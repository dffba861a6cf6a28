"""
A dissected model
=================

What one step is worth along the directions of the four methods, and how noisy each layer's
gradient is: a dissection of a small network on the digits, after some training with Adam.
"""

import matplotlib.pyplot as plt
import torch

import svag
from svag.problems import get, load, seed_everything
from svag.report.line_styles import STYLES

problem = get("digits")
split = load(problem).train
seed_everything(0)
model = problem.model()
batches = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(split.inputs, split.targets), batch_size=32, shuffle=True
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for inputs, targets in batches:
    optimizer.zero_grad()
    problem.loss(model(inputs), targets).backward()
    optimizer.step()

# %%
# The number of draws is given, so that the directions do not depend on the machine's speed.
# Without a race it takes seconds, and what is printed is what single steps say.

found = svag.dissect(
    model, problem.loss, batches, optimizer=optimizer, budget="8s", draws=8, steps=600, race=False
)
print(found)

# %%
# The expected decrease of the loss by one step, against the step size. A method's best step size
# is where its curve is highest.

figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
highest = 0.0
for one in found.improvements:
    if one.track == "plain":
        style = STYLES[one.method]
        line = "o-" if style.dash == "solid" else "o--"
        name = f"{svag.METHODS[one.method].name}: {one.value:.3f} at {one.lr:.2g}"
        axes.errorbar(one.lrs, one.curve, one.errors, fmt=line, ms=3, color=style.color, label=name)
        highest = max(highest, one.value)
axes.axhline(0, color="0.6", linewidth=0.8)
axes.set(xscale="log", ylim=(-0.5 * highest, 1.4 * highest))
axes.set(xlabel="step size", ylabel="expected decrease of the loss")
axes.legend(frameon=False)
plt.show()

# %%
# How noisy the gradient is: quantiles over coordinates of eta, the standard deviation over the
# mean. Where eta is above 1, a single mini-batch says little about the sign of the gradient.

figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
layers = [layer for layer in found.noise if layer.name != "all"]
for height, layer in enumerate(layers):
    low, _, median, _, high = layer.eta
    axes.plot([low, high], [height, height], color="0.6", linewidth=3, solid_capstyle="butt")
    axes.plot(median, height, "o", color="#cf3a1c")
axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
axes.set(xscale="log", xlabel="eta: median and the middle 80 % of coordinates")
axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
axes.invert_yaxis()
plt.show()

# %%
# :doc:`/dissect` says how all of it is measured.
