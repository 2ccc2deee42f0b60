"""Make throw-away pip packages, and environments to install them in, without a network.

A wheel is a zip file with a known layout, so that writing one needs no build tool.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

import edgecore

__all__ = ["Environment", "build_wheel", "see", "unpack_wheel"]


def build_wheel(
    directory: Path,
    name: str,
    version: str,
    module: str,
    *,
    entry_points: Mapping[str, Mapping[str, str]],
    requires: Sequence[str] = (),
) -> Path:
    """Write the wheel of a package with one module, named as the package, and return its path."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items())
        for group, names in entry_points.items()
    )
    files = {
        f"{stem}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": points,
    }
    files[f"{info}/RECORD"] = "".join(map(_record, files, files.values())) + f"{info}/RECORD,,\n"
    path = directory / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
    return path


def _record(path: str, content: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content.encode())}\n"


def unpack_wheel(wheel: Path, directory: Path) -> None:
    """Put the content of *wheel* into *directory*, as a copy on the path would have it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)


def see(packages: Path, *others: Path) -> None:
    """Let the environment of *packages* find what is in *others*, and what is installed there as a link to its source."""
    lines = (f"import site; site.addsitedir({str(other)!r})\n" for other in others)
    (packages / "seen.pth").write_text("".join(lines))


@frozen
class Environment:
    """A virtual environment that sees edgecore and its dependencies, and its own packages first."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Environment:
        """Make the environment in *directory*, without pip."""
        venv.EnvBuilder(symlinks=True).create(directory)
        made = cls(directory)
        package = edgecore.__file__
        assert package is not None
        see(made.packages, Path(package).parent.parent, Path(sysconfig.get_path("purelib")))
        return made

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.directory / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where packages are installed."""
        return next(self.directory.glob("lib/python*/site-packages"))

    def install(self, *wheels: Path) -> None:
        """Install or replace packages with pip, offline."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        options = ["--quiet", "--no-index", "--no-deps", "--force-reinstall"]
        subprocess.run([*pip, "install", *options, *map(str, wheels)], check=True, timeout=120)

    def start(self, script: str, *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start *script* with pipes as standard input and output."""
        return subprocess.Popen(
            [self.python, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, script: str, *, environment: Mapping[str, str] | None = None) -> Any:
        """Run *script*, which prints one JSON document, and return the document."""
        with self.start(script, environment=environment) as process:
            output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, f"the script ended with exit code {process.returncode}"
        return json.loads(output)
