"""Explore the exactly-once protocol as an explicit-state model.

`explorer` visits every state that a model can reach; `world` is the batch system with its faults, the
file server, the users and the properties; `script` is the batch script and `service` the service, step
by step. What the service concludes is decided by the product's own `edgecore.evidence.decide`.
"""
