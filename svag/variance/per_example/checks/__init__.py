"""Checks of the recorded owners against autograd and against other examples."""
