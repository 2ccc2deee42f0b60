"""The direction of imports, one module per dependency, and what a service may never do."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import edgecore

PACKAGE: Final = Path(str(edgecore.__file__)).parent

LAYERS: Final = (
    {
        "errors",
        "models",
        "clock",
        "wakeup",
        "processes",
        "gates",
        "lanes",
        "backoff",
        "migrations",
        "batch",
        "selection",
    },
    {"carrying", "certificates", "directories", "locks", "trees", "trouble"},
    {
        "logs",
        "states",
        "hookspecs",
        "commands",
        "parts",
        "serial",
        "toml",
        "evidence",
        "store_file",
        "alarms",
        "loop",
    },
    {"relays", "layers", "remote", "settings", "rows", "desk", "manifest", "progress", "warned"},
    {"drivers", "applications", "reader", "store"},
    {"config", "graph"},
    {"crew", "moves"},
    {"engine"},
    {
        "metrics",
        "telling",
        "admission",
        "broker",
        "cleaning",
        "grounds",
        "partners",
        "control",
        "watching",
        "workplace",
    },
    {"staging", "submitting", "credentials", "intake", "outbox"},
    {"balsam"},
    {"service"},
    {"doctor"},
    {"argo"},
    {"testing"},
    {"cli"},
    {"__init__", "__main__"},
)
"""Each module imports only from layers above its own line, or from its own package."""

FOR_DRIVERS: Final = {
    "backoff",
    "carrying",
    "certificates",
    "clock",
    "commands",
    "directories",
    "errors",
    "hookspecs",
    "models",
    "parts",
    "processes",
    "remote",
    "selection",
    "trees",
    "wakeup",
}
"""What `builtin` imports; drivers in packages of their own do with less."""

DEPENDENCIES: Final = {
    "attrs": {"*"},
    "cattrs": {"serial"},
    "click": {"cli"},
    "cryptography": {"builtin.rabbitmq_access", "certificates"},
    "hypothesis": {"testing"},
    "packaging": {"drivers"},
    "pika": {"builtin.rabbitmq_pika"},
    "pluggy": {"hookspecs", "relays"},
    "prometheus_client": {"metrics"},
    "pytest": {"testing"},
    "rich": {"cli"},
    "sqlite_utils": {"migrations"},
    "stevedore": {"drivers"},
    # of the standard library
    "subprocess": {"commands", "testing"},
}

MODULES: Final = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}


@cache
def parsed(path: Path) -> ast.Module:
    """Read a module once for all tests of it."""
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """Return every module that a file imports, at its top or anywhere else, but for types only."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            if node.module == "edgecore":
                yield from (f"edgecore.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)
        waiting += ast.iter_child_nodes(node)


def ours(module: str) -> set[str]:
    """Return what a module of ours imports of ours, without the leading name."""
    return {
        name.removeprefix("edgecore.") for name in imports(MODULES[module]) if name.startswith("edgecore.")
    }


def layer(name: str) -> int:
    package = name.split(".")[0]
    places = [number for number, names in enumerate(LAYERS) if package in names]
    assert places, f"edgecore.{package} has no place in the layers: give it one here and in the documentation"
    return places[0]


# ------------------------------------------------------------------------------- direction


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("builtin")])
def test_imports_go_one_way(module: str) -> None:
    package = module.split(".")[0]
    others = {name for name in ours(module) if name.split(".")[0] != package}
    upward = {name for name in others if name.split(".")[0] == "builtin" or layer(name) >= layer(module)}
    assert set() == upward


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("builtin.")])
def test_a_built_in_driver_uses_what_any_driver_may(module: str) -> None:
    assert set() == {name for name in ours(module) if not name.startswith("builtin.")} - FOR_DRIVERS - {
        "gates"
    }


PACKAGES: Final = sorted((PACKAGE.parent / "drivers").glob("*/edgecore_*/**/*.py"))
"""The modules of drivers in packages of their own, where the source tree has them."""


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_driver_of_its_own_package_uses_what_drivers_may_and_starts_no_process_by_itself(
    path: Path,
) -> None:
    found = set(imports(path))
    used = {name.removeprefix("edgecore.") for name in found if name.startswith("edgecore.")}
    assert set() == used - FOR_DRIVERS
    assert "subprocess" not in found
    called = {node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)}
    assert set() == called & (FORBIDDEN - {"system"})


COMMANDS: Final = {name for name in MODULES if name.startswith("testing.fake.")} - {"testing.fake.system"}
"""What every command of a fake batch system imports; it must start fast."""
ALONE: Final = {
    "builtin.fork_supervisor",
    "builtin.fork_spool",
    "gates",
    "wakeup",
    "processes",
    "testing.words",
}


@pytest.mark.parametrize("module", sorted(ALONE | COMMANDS))
def test_supervisors_and_fake_commands_need_the_standard_library_alone(module: str) -> None:
    others = {name.split(".")[0] for name in imports(MODULES[module])} - {"edgecore"}
    assert set() == others - sys.stdlib_module_names
    if module in COMMANDS:
        assert ours(module) <= COMMANDS | {"testing.fake", "testing.words", "gates", "processes"}


@pytest.mark.parametrize("module", MODULES)
def test_a_dependency_is_imported_in_its_one_module(module: str) -> None:
    package = module.split(".")[0]
    for name in {name.split(".")[0] for name in imports(MODULES[module])} - {"edgecore"}:
        allowed = DEPENDENCIES.get(name, {"*"} if name in sys.stdlib_module_names else set())
        assert allowed & {"*", module, package}, f"edgecore.{module} imports {name}"


def test_the_tests_of_this_file_see_imports_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom c import d\nfrom edgecore import e as x\n"
        "if TYPE_CHECKING:\n    import not_this\n"
        "def f():\n    if 1:\n        from g.h import i\n"
    )
    assert {"a.b", "c", "edgecore.e", "g.h"} == set(imports(path))


# --------------------------------------------------------------------------------- never


FORBIDDEN: Final = {
    "system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "spawnl", "spawnv", "spawnve",
    "execl", "execv", "execve", "execvp",
}  # fmt: skip


BATCH_SYSTEMS: Final = {"builtin.fork_supervisor", "gates", "testing.fake.processes"}
"""What starts jobs of its own that outlive whoever asked for them."""


@pytest.mark.parametrize("module", [name for name in MODULES if name not in BATCH_SYSTEMS])
def test_no_process_is_started_past_the_one_module_and_no_text_is_executed(module: str) -> None:
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in FORBIDDEN
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__")
        if isinstance(node, ast.keyword) and node.arg == "shell":
            raise AssertionError(f"{module}: no shell")


def test_no_module_uses_a_socket() -> None:
    assert {} == {name: found for name, path in MODULES.items() if "socket" in (found := {*imports(path)})}


def test_nobody_loads_plugins_by_the_way_that_one_broken_package_stops() -> None:
    for path in MODULES.values():
        assert "load_setuptools_entrypoints" not in path.read_text()


# --------------------------------------------------------------------------------- imports


def loaded(statement: str) -> set[str]:
    """Return the modules that an interpreter has after a statement."""
    code = f"{statement}; import sys; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(output.stdout.split())


def test_importing_the_package_imports_nothing_of_it() -> None:
    assert {"edgecore"} == {name for name in loaded("import edgecore") if name.startswith("edgecore")}


def test_a_service_and_its_built_in_drivers_need_no_command_line_and_no_broker_library() -> None:
    modules = loaded(
        "import edgecore.service, edgecore.builtin.fork, edgecore.builtin.copy, edgecore.builtin.queue"
    )
    assert (
        set() == {"click", "rich", "pika", "sqlite_utils", "pytest", "pkg_resources", "setuptools"} & modules
    )


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    for name in edgecore.__all__:
        assert hasattr(edgecore, name)
    with pytest.raises(AttributeError, match="no attribute 'Balsan'"):
        edgecore.Balsan  # noqa: B018 - reading it is the test


@pytest.mark.slow
def test_importing_the_package_takes_no_time_worth_mentioning() -> None:
    def fastest(code: str) -> float:
        found = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            found.append(time.perf_counter() - begun)
        return min(found)

    assert fastest("import edgecore") - fastest("pass") < 0.15
