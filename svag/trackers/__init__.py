"""Sends recorded runs to experiment trackers; a tracker's package is imported when it is used.

Runs are sent from their records, so this works with every executor, during and after a study.
"""
