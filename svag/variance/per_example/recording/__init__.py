"""Intercepts operations and backward passes, and collects contributions."""
