"""Move files with GridFTP: the transfer driver for ``gsiftp://`` and ``ftp://``."""

from edgecore_gridftp.driver import GridFtpTransfer

__all__ = ["GridFtpTransfer"]
