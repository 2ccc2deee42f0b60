"""Exactly once on real servers: a whole site on RabbitMQ and Slurm, while all of them are killed.

`storm` lets jobs, strangers' jobs and faults loose on one directory; what happened is noted there by those to whom it
happened: `programs` are the application, the strangers' job and the sbatch that note themselves, `cluster` reads
the logs of Slurm's own servers. `evidence` gathers it, `rules` say what must hold of it, and `account` prints the verdict.
"""
