"""Add to paramiko's connection what it lacks: order within a channel, and the last words of the other side.

A channel must say nothing after its CLOSE, else OpenSSH ends the whole connection with all that moves on it
("packet referred to nonexistent channel"). paramiko makes a message while it holds the channel's lock and sends it
later. When a program there ends while we still write to it, as one that does not exist does, paramiko's own thread
answers the CLOSE of the other side with ours in between, and the message comes too late.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import paramiko
from paramiko.common import cMSG_CHANNEL_CLOSE

from edgecore.trees import shown

__all__ = ["OrderedTransport", "Turns", "said", "why_closed"]

_WORDS_BYTES: Final = 1000
_PARTING_S: Final = 2.0


class Turns:
    """The transport as one channel sees it: takes its messages one by one, and none after CLOSE."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        """Be the transport in all other respects."""
        return getattr(self._transport, name)

    def _send_user_message(self, message: paramiko.Message) -> None:  # which is what channels send by
        with self._lock:
            if self._closed:
                return
            self._closed = message.asbytes()[:1] == cMSG_CHANNEL_CLOSE
            self._transport._send_user_message(message)  # noqa: SLF001 - channels know no other


class OrderedTransport(paramiko.Transport):  # type: ignore[misc]  # paramiko has no types
    """A connection of which each channel keeps to its order."""

    farewell = ""
    """What the other side said when it ended the connection, if it said anything."""

    def open_channel(self, *arguments: Any, **named: Any) -> paramiko.Channel:
        """Open a channel that says nothing after its CLOSE."""
        channel = super().open_channel(*arguments, **named)
        channel.transport = Turns(self)
        return channel

    def _parse_disconnect(self, message: paramiko.Message) -> None:
        words = paramiko.Message(message.get_remainder())
        words.get_int()
        self.farewell = shown(words.get_string()[:_WORDS_BYTES].decode("utf-8", "replace").strip())
        super()._parse_disconnect(message)


def said(error: BaseException) -> str:
    """Return what an error says; much of what paramiko raises about a lost connection says nothing."""
    return str(error) or "it was closed"


def why_closed(channel: paramiko.Channel, error: BaseException | None = None) -> str:
    """Say why a channel can be used no more: as the other side told, else as the network did, else *error*."""
    transport = channel.get_transport()
    channel.status_event.wait(_PARTING_S)  # an exit code comes after the end of the output
    if transport.farewell:
        return f"the server ended it: {transport.farewell}"
    if channel.exit_status_ready() and channel.exit_status >= 0:
        return f"the program there ended with exit code {channel.exit_status}"
    cause = transport.saved_exception or error
    return said(cause) if cause is not None else "it was closed by the other side"
