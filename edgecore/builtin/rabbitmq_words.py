"""Say in words why a connection to RabbitMQ failed or ended.

Errors of pika, OpenSSL and the system share no base class, come wrapped in each other, and depend on the version of
TLS. What they say themselves is kept, behind what it means.
"""

from __future__ import annotations

import re
from typing import Final

from edgecore.errors import EdgeError

__all__ = ["words_of"]

_WORDS: Final = (
    ("CERTIFICATE_EXPIRED", "the broker finds our certificate expired or not yet valid: renew it, and see both clocks"),
    ("ALERT_UNKNOWN_CA", "the broker does not know the authority that signed our certificate"),
    ("BAD_CERTIFICATE", "the broker refuses our certificate"),
    ("CERTIFICATE_REQUIRED|ALERT_HANDSHAKE_FAILURE", "the broker wants a certificate for clients, and a fit one: set certificate and key"),
    ("(?i)hostname mismatch|IP address mismatch", "the broker's certificate is for another host name"),
    ("CERTIFICATE_VERIFY_FAILED", "the broker's certificate is not signed by our authority: set authority to the right file"),
    (
        "IncompatibleProtocolError.*(?:EOF|ConnectionReset|BrokenPipe)",
        "the broker hung up at once: this port wants TLS (amqps://), or a certificate for clients, or another than ours",
    ),
    ("WRONG_VERSION_NUMBER", "this port does not speak TLS: see the port, or write amqp://"),
    ("negotiate use of the", "the broker does not take this way of authentication; see that its plugin for certificates is enabled, or that this is its TLS port"),
    ("ACCESS_REFUSED", "the broker does not let us in: see that it knows the user, and the password or certificate"),
    ("NOT_ALLOWED|no access to vhost", "the broker does not let us into this virtual host"),
    ("Connection refused", "nobody listens there"),
    ("Name or service not known|gaierror|No address associated", "there is no such host"),
    ("BlockedTimeout", "the broker takes no messages (its memory or disk is full), and that for too long"),
    ("HeartbeatTimeout", "the broker fell silent: its heartbeats stay away"),
    ("StackTimeout|SocketConnectError.*[Tt]imeout|TimeoutError", "it does not answer"),
    ("(?i)eof|ConnectionResetError|BrokenPipe", "the connection broke"),
)  # fmt: skip
"""What pika, OpenSSL or RabbitMQ say -> what that means; the first match counts."""


def words_of(error: BaseException) -> str:
    """Say what a connection or channel ended with, and what it said itself."""
    if isinstance(error, EdgeError):
        return str(error)
    said = _innermost(error)
    whole = f"{error!r} {said}"
    meaning = next((words for pattern, words in _WORDS if re.search(pattern, whole)), "")
    return f"{meaning} ({said})" if meaning else said


def _innermost(error: BaseException) -> str:
    """Return the words of the first cause, which pika wraps several times."""
    for _ in range(6):
        inner = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
        found = next((each for each in reversed(inner) if isinstance(each, BaseException)), None)
        if found is None:
            break
        error = found
    code, text = getattr(error, "reply_code", None), getattr(error, "reply_text", None)
    return f"{code} {text}" if text else f"{type(error).__name__}: {error}"
