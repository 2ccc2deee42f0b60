"""Build edge services for supercomputer sites."""
