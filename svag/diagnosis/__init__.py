"""What a model's own gradients say: whether Adam's sign or its variance adaptation helps here.

:func:`svag.dissect` measures at the current parameters, in this order: directions of the methods
(``directions.py``), what one step along each is worth (``improvement.py``), a short race
(``race.py``), the curvature (``curvature/``), and variants of the directions. The conclusion
(``conclusion.py``) follows from what was measured. Everything is recorded (``findings.py``).
"""
