"""Records in the trackers that people keep their experiments in; each is imported when asked for.

Trackers are sent what has been recorded, so they work with every executor, during a study and after
it.
"""
