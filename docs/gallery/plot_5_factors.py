"""
The factors of variance adaptation
==================================

How far to go if a gradient's relative standard deviation is eta? The best factor for the
gradient itself and the best one for its sign (Lemma 1), and Adam's, which is close to the
second as long as the noise is Gaussian. The paper's Figure 3.
"""

import matplotlib.pyplot as plt
import numpy as np

from svag.theory import gamma_erf, gamma_laplace, gamma_sqrt, gamma_svag, gamma_uniform, largest_gap

eta = np.linspace(0.01, 5, 500)
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
axes.plot(eta, gamma_svag(eta), color="#2166c4", label="best for the gradient (SVAG)")
axes.plot(eta, gamma_erf(eta), color="#cc7a00", label="best for the sign, Gaussian noise")
axes.plot(eta, gamma_laplace(eta), ":", color="#cc7a00", label="... Laplace noise")
axes.plot(eta, gamma_uniform(eta), "-.", color="#cc7a00", label="... uniform noise")
axes.plot(eta, gamma_sqrt(eta), "--", color="#cf3a1c", label="Adam")
axes.set(xlabel="eta = sigma/|grad|", ylabel="factor", ylim=(0, 1.02))
axes.legend(frameon=False)
plt.show()

# %%
# The largest difference between Adam's factor and the best one for the sign, Gaussian noise:

print(largest_gap())

# %%
# Lemma 1 by sampling: of all multiples of a noisy gradient, the one closest to the mean gradient
# on average.

from svag.theory import estimate_optimal_factor, optimal_factor

rng = np.random.default_rng(0)
samples = 1.0 + 2.0 * rng.standard_normal(100_000)
found = estimate_optimal_factor(samples, 1.0)
print(f"sampled {found.factor:.4f} +- {found.factor_error:.4f}")
print(f"Lemma 1 {optimal_factor(1.0, 4.0):.4f}")
