"""
The variance inside a mini-batch
================================

The examples of a mini-batch say how noisy its mean gradient is.
:func:`svag.within_batch_variance` reads the variance off during the backward pass. Is it right?
Draw many mini-batches, and look at how much the gradient really varies.
"""

import matplotlib.pyplot as plt
import torch

import svag
from svag.problems import get, load, seed_everything

problem = get("digits")
split = load(problem).train
seed_everything(0)
model = problem.model()
weight = model[0].weight


def gradient_and_variance():
    batch = split.take(torch.randint(len(split), (64,)))
    model.zero_grad()
    with svag.within_batch_variance(model):
        problem.loss(model(batch.inputs), batch.targets).backward()
    return weight.grad.flatten().clone(), weight.grad_var.flatten().clone()


gradients, variances = map(
    torch.stack, zip(*(gradient_and_variance() for _ in range(400)), strict=True)
)

# %%
# Horizontally, the variance of an entry over 400 mini-batches. Vertically, what one mini-batch
# says of it (light), and the mean of what all of them say (dark). Single mini-batches scatter;
# their mean lies on the diagonal, since the estimate is unbiased.

seen = gradients.var(0)
figure, axes = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
axes.plot(seen, variances[0], ".", ms=4, color="#9ec3ea", label="one mini-batch")
axes.plot(seen, variances.mean(0), ".", ms=5, color="#2166c4", label="mean of 400")
ends = [seen.min(), seen.max()]
axes.plot(ends, ends, color="0.5", linewidth=0.8)
axes.set(xscale="log", yscale="log")
axes.set(xlabel="variance over mini-batches", ylabel="variance from inside a mini-batch")
axes.legend(frameon=False)
plt.show()

# %%
# Over all entries, the mean of what mini-batches say, as a multiple of what is seen:

print(f"{variances.mean() / seen.mean():.3f}")

# %%
# :doc:`/variance` says for which models this works, and how it is checked.
