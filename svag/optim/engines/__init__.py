"""The same rule on different substrates."""
