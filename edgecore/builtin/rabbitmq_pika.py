"""Be all that knows pika: how a connection is made, what it survives, and how its loop is woken."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any

import pika
import pika.credentials
import pika.exceptions
import pika.frame
import pika.spec
from attrs import field, frozen
from pika.adapters.select_connection import EPollPoller, IOLoop, SelectConnection

from edgecore.errors import BrokerUnavailable

__all__ = ["Connection", "Endpoint", "Loop", "properties", "refusal"]

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Endpoint:
    """One broker, and who we are there."""

    host: str
    port: int
    virtual_host: str
    heartbeat_s: int
    connect_s: float
    blocked_s: float
    name: str
    """What the broker's operators see as the name of the connection."""
    user: str = ""
    password: str = field(default="", repr=False)
    """With a user; without, the certificate says who we are (EXTERNAL)."""
    tls: SSLContext | None = None
    server_name: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def parameters(self) -> pika.ConnectionParameters:
        """Return what pika needs to connect."""
        plain = pika.credentials.PlainCredentials(self.user, self.password, erase_on_connect=True)
        return pika.ConnectionParameters(
            host=self.host,
            port=self.port,
            virtual_host=self.virtual_host,
            credentials=plain if self.user else pika.credentials.ExternalCredentials(),
            ssl_options=pika.SSLOptions(self.tls, self.server_name or self.host) if self.tls else None,
            heartbeat=self.heartbeat_s,
            blocked_connection_timeout=self.blocked_s,
            socket_timeout=self.connect_s,
            stack_timeout=self.connect_s,
            connection_attempts=1,
            client_properties={"connection_name": self.name, "product": "edgecore"},
            tcp_options={"TCP_KEEPIDLE": 60},
        )


class Connection(SelectConnection):  # type: ignore[misc]
    """Be pika's connection, and survive what strangers write into the properties of a message.

    pika gives up the connection when it cannot read a header, such as a date in the year 10^10. The message would come
    again and again, and nothing else. Its body is read without them, and judged like any other.
    """

    def _read_frame(self) -> tuple[int, Any]:
        try:
            answer: tuple[int, Any] = super()._read_frame()
        except Exception as error:
            kind, channel, size = struct.unpack_from(">BHL", self._frame_buffer)
            if kind != pika.spec.FRAME_HEADER:
                raise
            log.warning("the properties of a message cannot be read, and count as none: %r", error)
            body_size = struct.unpack_from(">Q", self._frame_buffer, pika.spec.FRAME_HEADER_SIZE + 4)[0]
            end = pika.spec.FRAME_HEADER_SIZE + size + pika.spec.FRAME_END_SIZE
            return end, pika.frame.Header(channel, body_size, pika.BasicProperties())
        return answer

    def give_up(self, words: str) -> None:
        """End at once, without asking the broker."""
        if not self.is_closed:
            self._terminate_stream(BrokerUnavailable(words))


@frozen
class _PipeEnd:
    """One end of a pipe, in the words of a socket."""

    _fd: int

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        os.close(self._fd)


class _Poller(EPollPoller):  # type: ignore[misc]
    """Be woken through a pipe. pika would listen on a port for a moment, where anybody on this host may call first."""

    @staticmethod
    def _get_interrupt_pair() -> tuple[_PipeEnd, _PipeEnd]:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return _PipeEnd(read), _PipeEnd(write)


class Loop(IOLoop):  # type: ignore[misc]
    @staticmethod
    def _get_poller(get_wait_seconds: Any, process_timeouts: Any) -> _Poller:
        return _Poller(get_wait_seconds=get_wait_seconds, process_timeouts=process_timeouts)


def properties(
    *, message_id: str, reply_to: str | None, user_id: str, headers: Mapping[str, str]
) -> pika.BasicProperties:
    """Return the properties of a persistent message."""
    return pika.BasicProperties(
        delivery_mode=2,
        message_id=message_id or None,
        reply_to=reply_to,
        user_id=user_id or None,
        headers=dict(headers) or None,
    )


def refusal(error: BaseException) -> tuple[int, str]:
    """Return code and text with which the broker closed a channel; (0, "") where it was not the broker."""
    if isinstance(error, pika.exceptions.ChannelClosedByBroker):
        return int(error.reply_code), str(error.reply_text)
    return 0, ""
