"""
The paper's P1, from records
============================

Fashion-MNIST with the paper's network and step sizes: 6,000 steps, three seeds a method. The
trainings took hours; their records are in the repository, and everything below is read from
them.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import svag
from svag.analysis.study import analyse
from svag.report.line_styles import STYLES

folder = Path(svag.__file__).parents[1] / "results" / "paper-step-sizes" / "fmnist-2c2d"
analysis = analyse(folder)

# %%
# Mean and standard deviation over the seeds, as in the paper's Figure 5. Warm colours have the
# sign, solid lines are variance-adapted.

figure, both = plt.subplots(1, 2, figsize=(8.0, 3.8), layout="constrained")
for axes, name, label in zip(
    both, ("train_loss", "test_accuracy"), ("training loss", "test accuracy"), strict=True
):
    for key, result in analysis.methods.items():
        curve, style = result.curves[name], STYLES[key]
        line = "-" if style.dash == "solid" else "--"
        axes.fill_between(
            *(curve.steps, curve.mean - curve.sd, curve.mean + curve.sd),
            **{"color": style.color, "alpha": 0.15, "linewidth": 0},
        )
        axes.plot(curve.steps, curve.mean, line, color=style.color, label=result.entrant.name)
    axes.set(xlabel="step", title=label)
both[0].set_ylim(0.08, 0.5)
both[1].set_ylim(0.84, 0.93)
both[0].legend(frameon=False)
plt.show()

# %%
# The effects of the two halves on the test accuracy, in points, with intervals that hold all
# together with 95 %. "Sign or adaptation" is M-SSD against M-SVAG, "both or neither" is Adam
# against M-SGD.

for name, effect in analysis.claims.effects.items():
    low, high = effect.interval
    print(f"{name:<28} {100 * effect.estimate:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")

# %%
# ``svag report`` writes the whole page from the same records. :doc:`/reproduction` has the
# paper's other problems.
