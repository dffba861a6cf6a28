"""Trainers of other libraries that drive :class:`svag.Monitor` and log what it reports.

Each module needs its package only when its callback is made.
"""
