"""Compare a site with tools that submit to the same Slurm: ``python -m benchmarks.peers [--quick]``.

PSI/J is a portable interface to batch systems, and Parsl's providers start its workers there. Each does here what a
user of it writes: a loop that hands over jobs one by one. They run in an environment of their own, which is made at
the first run from the versions in ``requirements.txt``. They keep nothing that outlives their process, and are not
asked to; a site makes every job durable, and reports each of its steps, in the same time.
"""
