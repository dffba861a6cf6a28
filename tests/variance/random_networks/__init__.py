"""Networks drawn from a grammar, and what svag says of them against one backward per example."""
