"""Code compiled on the user's machine by Numba (extra ``fast``), and the threads it runs on."""
