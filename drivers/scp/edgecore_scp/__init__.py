"""Move files over SSH: the transfer driver for ``scp://`` and ``sftp://``."""

from edgecore_scp.driver import ScpTransfer

__all__ = ["ScpTransfer"]
