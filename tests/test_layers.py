"""Who may import what of flwr (import-linter sees no submodules of other people's packages), and the five folders' shape."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = {
    "shared_models": "ich_models",
    "strategies": "ich_strategies",
    "client": "ich_client",
    "server": "ich_server",
    "deploy": "ich_deploy",
}
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
ADAPTERS = {"ich_client.flower", "ich_server.flower", "ich_server.door", "ich_deploy.grid"}
STRATEGIES = "flwr.serverapp.strategy"


def imported(tree: ast.Module) -> Iterator[str]:
    """Every absolute module a source imports, at any depth; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def internals(tree: ast.Module) -> list[str]:
    """The imports of flwr that are not from its public modules; bare `import flwr` opens all of it, so it counts."""
    return [name for name in imported(tree) if within(name, ("flwr",)) and not within(name, PUBLIC)]


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(root / folder).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_flwr_internals_stay_in_their_adapters(repository: Path) -> None:
    found = {module: names for module, tree in modules(repository) if (names := internals(tree))}
    strangers = {module: names for module, names in found.items() if module not in ADAPTERS}
    assert not strangers, f"only {sorted(ADAPTERS)} may import more of flwr than {PUBLIC}"


def test_flwr_strategies_come_in_through_one_module(repository: Path) -> None:
    users = {m for m, tree in modules(repository) if any(within(name, (STRATEGIES,)) for name in imported(tree))}
    assert users <= {"ich_strategies.flower_strategies"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import flwr", ["flwr"]),
        ("import flwr.common as c", ["flwr.common"]),
        ("from flwr import app, server", ["flwr.server"]),
        ("def f():\n    from flwr.supercore.x import y", ["flwr.supercore.x.y"]),
        ("from flwr.appliance import x", ["flwr.appliance.x"]),
        ("from flwr.app import Message\nimport flwr.clientapp\nfrom flwr.serverapp.strategy import FedAvg", []),
        ("from .flwr import x\nimport flwrs", []),
    ],
)
def test_the_check_tells_internal_from_public(source: str, expected: list[str]) -> None:
    assert internals(ast.parse(source)) == expected


@pytest.mark.parametrize(("folder", "package"), FOLDERS.items())
def test_each_folder_is_no_package_and_holds_exactly_one(repository: Path, folder: str, package: str) -> None:
    # `import server` must never work: another wheel with that name would silently overwrite ours.
    assert not (repository / folder / "__init__.py").exists()
    assert [path.parent.name for path in (repository / folder).glob("*/__init__.py")] == [package]
    assert (repository / folder / package / "py.typed").is_file()


def test_no_screen_turns_figures_into_pictures(repository: Path) -> None:
    """rich reads :AB: of a fingerprint as an emoji, with markup off too, unless the console is told not to."""
    folders = ("client", "server", "deploy", "shared_models", "strategies")
    calls = [
        (path, node)
        for folder in folders
        for path in (repository / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    ]
    assert calls
    for path, call in calls:
        told = {each.arg: each.value for each in call.keywords}
        assert isinstance(told.get("emoji"), ast.Constant), f"{path}:{call.lineno}"
        assert told["emoji"].value is False, f"{path}:{call.lineno}"
