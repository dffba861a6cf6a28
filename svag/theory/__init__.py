"""The paper's statements as functions, in NumPy and SciPy alone, each with its equation number.

It is the oracle that the optimizers and the diagnosis are tested against, so it imports nothing
of ``svag`` but the errors and the table of methods, and works where torch is absent. Nothing here
draws: that is :mod:`svag.theory.figures`.
"""

from svag.theory.adam import adam_join, adam_relative_variance, adam_split
from svag.theory.averages import averaging_weights, debiasing, mean_and_variance, rho
from svag.theory.drift import (
    epoch_covariance,
    expected_variance_estimate,
    linear_drift_bias,
    stationary_overestimate,
    variance_of_average,
)
from svag.theory.dynamics import Contender, Trajectories, log_spaced, simulate
from svag.theory.factors import (
    FactorEstimate,
    Gap,
    estimate_optimal_factor,
    estimate_optimal_sign_factor,
    expected_distance,
    expected_sign,
    expected_sign_distance,
    gamma_erf,
    gamma_sqrt,
    gamma_svag,
    largest_gap,
    optimal_factor,
    optimal_sign_factor,
    success_probability,
)
from svag.theory.figure2 import NOISE_LEVELS, SEEDS, TIE, Panel, figure2_panels
from svag.theory.quadratic import Improvement, StochasticQuadratic
from svag.theory.rules import AdaGrad, AnatomyRule, RMSProp, Rule
from svag.theory.separable import (
    FULL_BATCH,
    LeastSquares,
    angle,
    full_batch_iterates,
    proportionality_error,
)
from svag.theory.sign_confidence import expected_sign_confidence
from svag.theory.sign_factors import (
    gamma_laplace,
    gamma_logistic,
    gamma_student,
    gamma_uniform,
    gamma_unimodal_floor,
)
from svag.theory.signs import expected_sign_form, expected_sign_product
from svag.theory.spectra import (
    eigenvalues_structured,
    eigenvalues_uniform,
    p_diag,
    p_diag_bound,
    p_diag_mean,
    random_rotation,
)
from svag.theory.theorem1 import (
    Theorem1Constants,
    fitted_slope,
    local_slopes,
    theorem1_bound,
    theorem1_constants,
    theorem1_contenders,
)
from svag.theory.wilson import (
    ErrorRate,
    WilsonRow,
    wilson_comparison,
    wilson_data,
    wilson_test_error,
)

__all__ = [
    "AdaGrad",
    "AnatomyRule",
    "Contender",
    "ErrorRate",
    "FULL_BATCH",
    "FactorEstimate",
    "Gap",
    "Improvement",
    "LeastSquares",
    "NOISE_LEVELS",
    "Panel",
    "RMSProp",
    "Rule",
    "SEEDS",
    "StochasticQuadratic",
    "TIE",
    "Theorem1Constants",
    "Trajectories",
    "WilsonRow",
    "adam_join",
    "adam_relative_variance",
    "adam_split",
    "angle",
    "averaging_weights",
    "debiasing",
    "eigenvalues_structured",
    "eigenvalues_uniform",
    "epoch_covariance",
    "estimate_optimal_factor",
    "estimate_optimal_sign_factor",
    "expected_distance",
    "expected_sign",
    "expected_sign_confidence",
    "expected_sign_distance",
    "expected_sign_form",
    "expected_sign_product",
    "expected_variance_estimate",
    "figure2_panels",
    "fitted_slope",
    "full_batch_iterates",
    "gamma_erf",
    "gamma_laplace",
    "gamma_logistic",
    "gamma_sqrt",
    "gamma_student",
    "gamma_svag",
    "gamma_uniform",
    "gamma_unimodal_floor",
    "largest_gap",
    "linear_drift_bias",
    "local_slopes",
    "log_spaced",
    "mean_and_variance",
    "optimal_factor",
    "optimal_sign_factor",
    "p_diag",
    "p_diag_bound",
    "p_diag_mean",
    "proportionality_error",
    "random_rotation",
    "rho",
    "simulate",
    "stationary_overestimate",
    "success_probability",
    "theorem1_bound",
    "theorem1_constants",
    "theorem1_contenders",
    "variance_of_average",
    "wilson_comparison",
    "wilson_data",
    "wilson_test_error",
]
