"""What carries runs out: this process, processes beside it, a Ray cluster, a Slurm cluster.

All execute the same plan (``svag.lab.execution``) and leave the same records.
"""
