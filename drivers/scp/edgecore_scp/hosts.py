"""Find out how to reach a host, as OpenSSH's configuration says it, and log in there with a key.

What a server says of itself is believed only after its host key was found in known_hosts. There are no
passwords: keys come from files, with certificates beside them, or from an agent.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import paramiko
from attrs import frozen

from edgecore.errors import EdgeError, TransferInterrupted, TransferRefused
from edgecore.processes import user_name
from edgecore_scp.known import KnownKeys
from edgecore_scp.place import Place
from edgecore_scp.transport import OrderedTransport, said

__all__ = ["Login", "Route", "connected", "route_to", "unusable"]

_LOGS: Final = "edgecore_scp.transport"
_GLOBAL_KNOWN_HOSTS: Final = "/etc/ssh/ssh_known_hosts"
_JUMPS_LIMIT: Final = 5
_JUMP: Final = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:\[\]/]+)(?::(?P<port>[0-9]{1,5}))?/?"
)

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
    port = place.port or _port(str(found.get("port", "22")), place.host, login)
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


def _port(text: str, host: str, login: Login) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise TransferRefused(f"{login.ssh_config} has port {text} for {host}; there are 1 to 65535")
    return int(text)


def _looked_up(host: str, file: str) -> Mapping[str, Any]:
    path = Path(file).expanduser()
    if file == "none" or not path.exists():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(path).lookup(host))
    except (OSError, ValueError, ImportError, paramiko.SSHException) as error:
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
        for hop in _hops(route, login):
            clients.append(_logged_in(hop, login, _socket(hop, login, clients)))
    except BaseException:
        for client in reversed(clients):
            client.close()
        raise
    return clients


def _hops(route: Route, login: Login) -> list[Route]:
    """Return the hosts on the way and the host itself; the first may have others before it, as with OpenSSH."""
    hops = [route]
    while hops[0].jumps:
        hops = [*(route_to(_jump(text, route, login), login) for text in hops[0].jumps), *hops]
        if len(hops) > _JUMPS_LIMIT + 1:
            raise TransferRefused(
                f"{login.ssh_config} leads to {route.host} by more than {_JUMPS_LIMIT} hosts (ProxyJump), or in circles"
            )
    return hops


def _jump(text: str, route: Route, login: Login) -> Place:
    found = _JUMP.fullmatch(text)
    if found is None:
        raise TransferRefused(
            f"{login.ssh_config} has ProxyJump {text} for {route.host}, which is not of the form [user@]host[:port]"
        )
    host = found["host"].strip("[]")
    port = _port(found["port"], host, login) if found["port"] else None
    return Place(found["user"] or "", host, port, b"/")


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
    if isinstance(error, socket.gaierror) and error.strerror:
        return error.strerror
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else said(error)


def _logged_in(route: Route, login: Login, sock: Any) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_log_channel(_LOGS)
    try:
        known = _known(route)
        client.set_missing_host_key_policy(known)
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
            transport_factory=lambda sock, disabled_algorithms: _transport(sock, login, known),
        )
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(int(login.keepalive_s))
    except BaseException as error:
        client.close()
        sock.close()
        if isinstance(error, (OSError, EOFError, paramiko.SSHException)):
            raise _explained(error, route, login) from error
        raise
    return client


def _transport(sock: Any, login: Login, known: KnownKeys) -> paramiko.Transport:
    transport = OrderedTransport(sock)
    options = transport.get_security_options()
    options.key_types = known.preferred(options.key_types)
    options.ciphers = tuple(
        dict.fromkeys([*(name for name in login.ciphers if name in options.ciphers), *options.ciphers])
    )
    return transport


# -------------------------------------------------------------------------------------- errors


def _known(route: Route) -> KnownKeys:
    """Return the keys of a host; without any, nothing is sent there. Raises TransferRefused and OSError."""
    known = KnownKeys.of(route.known_as, route.known_hosts)
    if not known.keys:
        raise TransferRefused(
            f"no host key is known for {route.known_as} (looked in {', '.join(route.known_hosts)}); ask its "
            f"operators for the fingerprint, compare it with that of `ssh-keyscan -p {route.port} "
            f"{route.address}`, and add the line of ssh-keyscan to {route.known_hosts[0]}"
        )
    return known


def _explained(error: Exception, route: Route, login: Login) -> EdgeError:
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
        keys = (", ".join(route.key_files) or "those in ~/.ssh") + ("; agent" if login.agent else "")
        return TransferRefused(
            f"{route}: Permission denied (publickey): none of our keys ({keys}) was accepted; is "
            f"the public key in authorized_keys there, and the right account named? ({error})"
        )
    if isinstance(error, paramiko.SSHException) and "No authentication methods" in str(error):
        return _keyless(route, login)
    if isinstance(error, PermissionError) and error.filename:
        return TransferRefused(f"cannot read {error.filename} for {route}: {error.strerror}")
    if login.key_file and (trouble := unusable(route.key_files[0])):
        return TransferRefused(f"cannot use {route.key_files[0]} to log in as {route}: {trouble}")
    return TransferInterrupted(f"cannot log in as {route}: {said(error)}")


def unusable(key_file: str | Path) -> str:
    """Say why a private key can never be used; empty where it can, be it with its passphrase."""
    try:
        paramiko.PKey.from_path(key_file)
    except paramiko.PasswordRequiredException:
        return ""
    except Exception as error:  # what cryptography says of a damaged key is not one kind of error
        return getattr(error, "strerror", None) or str(error) or "it is damaged"
    return ""


def _keyless(route: Route, login: Login) -> EdgeError:
    """Say that there is nothing to log in with; an agent may come back."""
    agent = os.environ.get("SSH_AUTH_SOCK") if login.agent else None
    looked = ", ".join(route.key_files) or "~/.ssh"
    words = f"there is no key to log in with as {route} (looked for {looked})"
    if agent:
        return TransferInterrupted(
            f"{words}, and the agent at {agent} has none or does not answer; ssh-add the key, or name a key_file"
        )
    return TransferRefused(f"{words}; make it with ssh-keygen, or correct key_file")
