"""Find out how to reach a host, as OpenSSH's configuration says it, and log in there with a key.

What a server says of itself is believed only after its host key was found in known_hosts. There are no
passwords: keys come from files, with certificates beside them, or from an agent.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import paramiko
from attrs import frozen

from edgecore.errors import EdgeError, TransferInterrupted, TransferRefused
from edgecore.processes import user_name
from edgecore_scp.place import Place
from edgecore_scp.transport import OrderedTransport, said

__all__ = ["Login", "Route", "connected", "route_to"]

_LOGS: Final = "edgecore_scp.transport"
_GLOBAL_KNOWN_HOSTS: Final = "/etc/ssh/ssh_known_hosts"
_JUMPS_LIMIT: Final = 5

logging.getLogger(_LOGS).setLevel(logging.CRITICAL)  # paramiko logs with traceback what it raises as well


@frozen(kw_only=True)
class Login:
    """How to log in, as far as the driver's keys say it."""

    user: str
    key_file: str
    known_hosts: str
    ssh_config: str
    agent: bool
    connect_s: float
    keepalive_s: float
    ciphers: tuple[str, ...]


@frozen(kw_only=True)
class Route:
    """Where a host is and who we are there."""

    host: str
    """As the URL names it."""
    address: str
    port: int
    user: str
    known_as: str
    """Its name in known_hosts."""
    key_files: tuple[str, ...]
    """Empty: what stands in ~/.ssh."""
    known_hosts: tuple[str, ...]
    jumps: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.user}@{self.address}:{self.port}"


# ------------------------------------------------------------------------------- configuration


def route_to(place: Place, login: Login) -> Route:
    """Return the way to a host. Raises TransferRefused when OpenSSH's configuration cannot be used."""
    found = _looked_up(place.host, login.ssh_config)
    if found.get("proxycommand", "none").lower() != "none":
        raise TransferRefused(
            f"{login.ssh_config} has a ProxyCommand for {place.host}, which is not run; write ProxyJump instead"
        )
    address = str(found.get("hostname", place.host))
    port = place.port or int(found.get("port", 22))
    alias = found.get("hostkeyalias")
    known = (
        [login.known_hosts]
        if login.known_hosts
        else shlex.split(found.get("userknownhostsfile", "~/.ssh/known_hosts"))
    )
    jumps = found.get("proxyjump", "none")
    return Route(
        host=place.host,
        address=address,
        port=port,
        user=place.user or login.user or str(found.get("user", user_name())),
        known_as=str(alias) if alias else _known_name(address, port),
        key_files=tuple(
            map(os.path.expanduser, [login.key_file] if login.key_file else found.get("identityfile", []))
        ),
        known_hosts=tuple(os.path.expanduser(file) for file in (*known, _GLOBAL_KNOWN_HOSTS)),
        jumps=() if jumps.lower() == "none" else tuple(jump.strip() for jump in jumps.split(",")),
    )


def _looked_up(host: str, file: str) -> Mapping[str, Any]:
    path = Path(file).expanduser()
    if file == "none" or not path.exists():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(path).lookup(host))
    except (OSError, paramiko.SSHException) as error:
        raise TransferRefused(
            f"cannot read {path}: {error}; correct it, or name another as ssh_config"
        ) from error


def _known_name(address: str, port: int) -> str:
    return address if port == paramiko.config.SSH_PORT else f"[{address}]:{port}"


# ---------------------------------------------------------------------------------- connecting


def connected(route: Route, login: Login) -> list[paramiko.SSHClient]:
    """Log in; the last client is the host's, those before it are of the hosts on the way.

    Raises TransferInterrupted when it cannot be reached now, TransferRefused when keys are to blame.
    """
    clients: list[paramiko.SSHClient] = []
    try:
        for jump in route.jumps[:_JUMPS_LIMIT]:
            user, _, rest = jump.rpartition("@")
            host, _, port = rest.partition(":")
            way = route_to(Place(user, host, int(port) if port else None, b"/"), login)
            clients.append(_logged_in(way, login, _socket(way, login, clients)))
        clients.append(_logged_in(route, login, _socket(route, login, clients)))
    except BaseException:
        for client in reversed(clients):
            client.close()
        raise
    return clients


def _socket(route: Route, login: Login, clients: Sequence[paramiko.SSHClient]) -> Any:
    try:
        if not clients:
            made = socket.create_connection((route.address, route.port), timeout=login.connect_s)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        transport = clients[-1].get_transport()
        assert transport is not None
        return transport.open_channel(
            "direct-tcpip", (route.address, route.port), ("127.0.0.1", 0), timeout=login.connect_s
        )
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise TransferInterrupted(
            f"connect to host {route.address} port {route.port}: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the system's words where it has any, which are OpenSSH's, too."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else said(error)


def _logged_in(route: Route, login: Login, sock: Any) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_log_channel(_LOGS)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        _know(client, route)
        client.connect(
            route.known_as,
            username=route.user,
            key_filename=[file for file in route.key_files if os.path.exists(file)] or None,
            allow_agent=login.agent,
            look_for_keys=not route.key_files,
            sock=sock,
            banner_timeout=login.connect_s,
            auth_timeout=login.connect_s,
            channel_timeout=login.connect_s,
            transport_factory=lambda sock, disabled_algorithms: _transport(sock, login),
        )
        transport = client.get_transport()
        assert transport is not None
        _refuse_revoked(transport.get_remote_server_key(), route)
        transport.set_keepalive(int(login.keepalive_s))
    except BaseException as error:
        client.close()
        sock.close()
        if isinstance(error, (OSError, EOFError, paramiko.SSHException)):
            raise _explained(error, route) from error
        raise
    return client


def _transport(sock: Any, login: Login) -> paramiko.Transport:
    transport = OrderedTransport(sock)
    options = transport.get_security_options()
    options.ciphers = tuple(
        dict.fromkeys([*(name for name in login.ciphers if name in options.ciphers), *options.ciphers])
    )
    return transport


# ------------------------------------------------------------------------------------ host keys


def _lines(route: Route) -> Iterator[tuple[str, str]]:
    """Yield (file, line) of all known_hosts."""
    for file in route.known_hosts:
        with suppress(FileNotFoundError):
            for line in Path(file).read_text(errors="replace").splitlines():
                yield file, line.strip()


def _know(client: paramiko.SSHClient, route: Route) -> None:
    """Tell the client the keys of its host; without any, nothing is sent there.

    Lines with marks are not for paramiko, which does not know them, and neither are lines of others.
    """
    for _, line in _lines(route):
        if not line or line[0] in "#@":
            continue
        with suppress(paramiko.hostkeys.InvalidHostKey):  # of another host, or of no use
            entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
            for name in entry.hostnames if entry is not None else ():
                client.get_host_keys().add(name, entry.key.get_name(), entry.key)
    if client.get_host_keys().lookup(route.known_as) is None:
        raise TransferRefused(
            f"no host key is known for {route.known_as} (looked in {', '.join(route.known_hosts)}); ask its "
            f"operators for the fingerprint, compare it with that of `ssh-keyscan -p {route.port} "
            f"{route.address}`, and add the line of ssh-keyscan to {route.known_hosts[0]}"
        )


def _refuse_revoked(key: paramiko.PKey, route: Route) -> None:
    for file, line in _lines(route):
        if line.startswith("@revoked") and key.get_base64() in line.split():
            raise TransferRefused(
                f"the host key of {route.known_as} is marked as revoked in {file}; ask its operators for "
                "their present key"
            )


def _explained(error: Exception, route: Route) -> EdgeError:
    if isinstance(error, paramiko.BadHostKeyException):
        return TransferRefused(
            f"Host key verification failed: the host key of {route.known_as} has changed to "
            f"{error.key.fingerprint}. Somebody may be in between. If its operators confirm the new key, remove the "
            f"old one with `ssh-keygen -f {route.known_hosts[0]} -R '{route.known_as}'` and add the new one"
        )
    if isinstance(error, paramiko.PasswordRequiredException):
        return TransferRefused(
            f"a key for {route} is protected by a passphrase; add it to the agent, or use one without ({error})"
        )
    if isinstance(error, paramiko.AuthenticationException):
        keys = ", ".join(route.key_files) or "those in ~/.ssh"
        return TransferRefused(
            f"{route}: Permission denied (publickey): none of our keys ({keys}; agent) was accepted; is "
            f"the public key in authorized_keys there, and the right account named? ({error})"
        )
    if isinstance(error, paramiko.SSHException) and "not found in known_hosts" in str(error):
        return TransferRefused(f"Host key verification failed: {error}")
    if isinstance(error, PermissionError) and error.filename:
        return TransferRefused(f"cannot read {error.filename} for {route}: {error.strerror}")
    return TransferInterrupted(f"cannot log in as {route}: {said(error)}")
