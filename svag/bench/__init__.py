"""Measures what svag costs, as ratios to peers timed in turn with it in the same process."""
