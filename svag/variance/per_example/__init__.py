"""The within-batch variance of gradients, from per-example gradients."""

from svag.variance.per_example.context import within_batch_variance
from svag.variance.per_example.schedule import CHECK_EVERY

__all__ = ["CHECK_EVERY", "within_batch_variance"]
