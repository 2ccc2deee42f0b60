"""Run a private RabbitMQ on loopback: own directories, ports, cookie, node name; certificates for clients.

It never meets a RabbitMQ that the machine runs for others. The server and its name daemon end with the process that
started them, however it ends.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from testbed.certificates import Authority, Credential
from testbed.daemon import Daemon
from testbed.keeper import Keeper

__all__ = ["PASSWORD", "USERS", "RabbitMQ", "why_missing"]

_PROGRAMS: Final = Path(
    "/usr/lib/rabbitmq/bin"
)  # those of /usr/sbin change to the account of the packaged server
_DEADLINE_S: Final = 120.0
PASSWORD: Final = "not-a-secret"

USERS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Who makes everything, and the one with a password on the listener without encryption.
    "operator": {"configure": ".*", "write": ".*", "read": ".*"},
    "guest": {"configure": ".*", "write": ".*", "read": ".*"},
    # A site: its own queue, its status, its dead letters. Nothing else, and it declares nothing.
    "theta": {
        "configure": "^$",
        "write": "^(hpc|rejected)$",
        "read": r"^theta(\.rejected)?$",
        "topics": {"hpc": "^balsam_job_status$", "rejected": "^theta$"},
    },
    # Who asks for jobs: writes to sites, and to nobody else.
    "physicist": {"configure": "^$", "write": "^hpc$", "read": "^$", "topics": {"hpc": "^(theta|cori)$"}},
    # Who reads status.
    "argo": {
        "configure": "^$",
        "write": "^hpc$",
        "read": "^balsam_job_status$",
        "topics": {"hpc": "^(theta|cori)$"},
    },
}
"""User, named as in its certificate -> permissions as a broker's operator gives them."""

_CONFIGURATION: Final = """
listeners.tcp.1 = 127.0.0.1:{plain}
listeners.ssl.1 = 127.0.0.1:{tls}
ssl_options.cacertfile = {base}/certificates/authority.pem
ssl_options.certfile = {base}/certificates/server.pem
ssl_options.keyfile = {base}/certificates/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_cert_login_from = common_name
auth_mechanisms.1 = EXTERNAL
auth_mechanisms.2 = PLAIN
load_definitions = {base}/definitions.json
log.console = false
log.file.level = info
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 10MB
"""


def why_missing() -> str:
    """Say why there can be no server here; empty where there can."""
    missing = [each for each in (_PROGRAMS / "rabbitmq-server", "epmd") if shutil.which(each) is None]
    return f"not installed: {', '.join(map(str, missing))} (make packages)" if missing else ""


class RabbitMQ:
    """One server, which tests stop, kill and start."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.authority = Authority(base / "certificates")
        self.authority.server()
        self.credentials = {name: self.authority.client(name) for name in USERS if name != "guest"}
        self.plain, self.tls, self._distribution, self._epmd_port = _free_ports(4)
        self._node = f"edgecore-{secrets.token_hex(4)}@localhost"
        self._lay_out()
        self._keeper = Keeper()
        arguments = ("-address", "127.0.0.1", "-port", str(self._epmd_port))
        self._epmd = self._daemon("epmd", *arguments, ports=[self._epmd_port])
        self._server = self._daemon(_PROGRAMS / "rabbitmq-server", ports=[self.plain, self.tls])

    def _lay_out(self) -> None:
        for name in ("home", "data", "log"):
            (self.base / name).mkdir()
        cookie = self.base / "home" / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)
        (self.base / "plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
        (self.base / "environment").write_text("")
        (self.base / "rabbitmq.conf").write_text(
            _CONFIGURATION.format(plain=self.plain, tls=self.tls, base=self.base)
        )
        (self.base / "definitions.json").write_text(json.dumps(_definitions()))
        (self.base / "password").touch(mode=0o600)
        (self.base / "password").write_text(PASSWORD + "\n")

    @property
    def _environment(self) -> dict[str, str]:
        base = self.base
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": f"{base}/home",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": f"{base}/data",
            "RABBITMQ_LOG_BASE": f"{base}/log",
            "RABBITMQ_PID_FILE": f"{base}/pid",
            "RABBITMQ_CONF_ENV_FILE": f"{base}/environment",
            "RABBITMQ_CONFIG_FILE": f"{base}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{base}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{base}/plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{base}/generated",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{base}/feature_flags",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            # Two small schedulers: the machine is shared with what it tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            "detached": "1",  # the start script becomes the server, and does not stay beside it
        }

    # ------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start it, unless it runs; return when it accepts connections."""
        self._epmd.start()
        self._server.start()

    def stop(self) -> None:
        """Shut it down in good order."""
        self._server.stop()

    def kill(self) -> None:
        """End it as a power failure does."""
        self._server.kill()

    def freeze(self) -> None:
        """Let it answer nothing, without closing anything."""
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._server.signal(signal.SIGCONT)

    def close(self) -> None:
        """End all of it for good."""
        self._keeper.close()

    def _daemon(self, program: str | Path, *arguments: str, ports: Sequence[int]) -> Daemon:
        return Daemon(
            [str(shutil.which(program)), *arguments],
            self._environment,
            self.base / "log" / "output",
            lambda: all(map(_answers, ports)),
            self._keeper,
            deadline_s=_DEADLINE_S,
        )

    @property
    def output(self) -> str:
        """What server and name daemon said outside of the server's own log."""
        return (self.base / "log" / "output").read_text(errors="replace")

    # ---------------------------------------------------------------------------- operator

    @property
    def control_command(self) -> list[str]:
        """How ``rabbitmqctl`` is run for this server, from anywhere."""
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return ["env", "-i", *variables, str(_PROGRAMS / "rabbitmqctl"), "-q"]

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``; return what it says."""
        command = [*self.control_command, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def alarm(self, *, on: bool) -> None:
        """Let it find that its memory is full, or that it is not."""
        self.control("set_vm_memory_high_watermark", *(("0.000001",) if on else ("absolute", "2GB")))

    # ----------------------------------------------------------------------------- clients

    def settings(self, user: str = "operator", **more: Any) -> dict[str, Any]:
        """Return what a driver needs to connect over TLS, as a *user* with a certificate."""
        return {"url": f"amqps://localhost:{self.tls}/", **self.files(self.credentials[user]), **more}

    def files(self, credential: Credential) -> dict[str, Any]:
        """Return the keys that name a certificate's files."""
        return {
            "certificate": str(credential.certificate),
            "key": str(credential.key),
            "authority": str(self.authority.file),
        }

    def plain_settings(self, **more: Any) -> dict[str, Any]:
        """Return what a driver needs to connect with a password and without encryption."""
        url = f"amqp://guest@127.0.0.1:{self.plain}/"
        return {"url": url, "password_file": str(self.base / "password"), **more}


def _definitions() -> Mapping[str, Any]:
    """Return users, permissions and a site's topology, as ``rabbitmqctl import_definitions`` takes them."""
    letters = {"x-dead-letter-exchange": "rejected", "x-queue-type": "quorum"}
    queues: dict[str, Mapping[str, str]] = {}
    for name in ("theta", "cori", "balsam_job_status"):
        queues[name] = {**letters, "x-dead-letter-routing-key": name}
        queues[f"{name}.rejected"] = {"x-queue-type": "quorum"}
    bindings = [("hpc", name, name) for name in queues if not name.endswith(".rejected")]
    bindings += [
        ("rejected", name, name.removesuffix(".rejected")) for name in queues if name.endswith(".rejected")
    ]
    place = {"vhost": "/"}
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            {"name": name, "tags": []}
            | ({"password": PASSWORD} if name == "guest" else {"password_hash": ""})
            for name in USERS
        ],
        "permissions": [
            {"user": name, **place, **{key: user[key] for key in ("configure", "write", "read")}}
            for name, user in USERS.items()
        ],
        "topic_permissions": [
            {"user": name, **place, "exchange": exchange, "write": keys, "read": ".*"}
            for name, user in USERS.items()
            for exchange, keys in user.get("topics", {}).items()
        ],
        "exchanges": [
            {
                "name": name,
                **place,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in ("hpc", "rejected")
        ],
        "queues": [
            {"name": name, **place, "durable": True, "auto_delete": False, "arguments": arguments}
            for name, arguments in queues.items()
        ],
        "bindings": [
            {
                "source": source,
                **place,
                "destination": queue,
                "destination_type": "queue",
                "routing_key": key,
                "arguments": {},
            }
            for source, queue, key in bindings
        ],
    }


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _free_ports(count: int) -> Sequence[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
