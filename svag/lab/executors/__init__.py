"""Executors carry out runs: in this process, in worker processes, on a Ray or a Slurm cluster.

All execute the same plan (``svag.lab.execution``) and write the same records.
"""
