"""Every endpoint of every listener says who may call it, in ``opt["access"]``, from a closed list."""

import ast
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECORATORS = {"get", "post", "put", "patch", "delete", "head", "route", "websocket", "asgi"}
KNOWN = {
    "router": {"health", "operator"},
    "cell": {"health", "public", "viewer", "member", "admin", "owner", "operator", "control-plane"},
    "control_plane": {"health", "public", "viewer", "operator", "admin", "router", "agent"},
}


def handlers(path: Path) -> list[tuple[str, str | None]]:
    """Every Litestar handler in a file, with the access that it declares."""
    tree = ast.parse(path.read_text())
    litestar = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("litestar")
        for alias in node.names
        if alias.name in DECORATORS
    }
    if not litestar:
        return []
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in litestar:
                opt = next((k.value for k in call.keywords if k.arg == "opt"), None)
                declared = eval(ast.unparse(opt), vars(module)) if opt is not None else {}
                found.append((node.name, declared.get("access")))
    return found


def test_every_endpoint_says_who_may_call_it() -> None:
    total = 0
    for package, known in KNOWN.items():
        for path in sorted((ROOT / package).rglob("*.py")):
            for name, access in handlers(path):
                total += 1
                assert access in known, f"{path.relative_to(ROOT)}: {name} declares the access {access!r}"
    assert total > 40, "the scan finds too few endpoints: does it still recognise them?"


def test_only_health_is_open_on_internal_listeners() -> None:
    for file in (
        "router/admin.py",
        "control_plane/api.py",
        "control_plane/routes_api.py",
        "control_plane/moves_api.py",
    ):
        for name, access in handlers(ROOT / file):
            assert access != "public", f"{file}: {name} is open to everybody"
