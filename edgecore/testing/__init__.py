"""Hold a driver to its contract: classes to subclass, a fake batch system, and the faults to survive."""
