"""Rules of the package layout that import-linter cannot check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "unlearn_ext").rglob("*.py"))


def _module(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _imported(file: Path) -> list[tuple[str, ...]]:
    """Return the full names that a file imports with relative imports."""
    module, names = _module(file), []
    package = module if file.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
            names += [(*base, alias.name) for alias in node.names]
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: ".".join(_module(file)))
def test_private_names_stay_in_their_package(file):
    for name in _imported(file):
        for place, part in enumerate(name):
            if _is_private(part):
                assert _module(file)[:place] == name[:place], f"{'.'.join(name)} is private"


@pytest.mark.parametrize("file", FILES, ids=lambda file: ".".join(_module(file)))
def test_public_modules_have_all(file):
    if any(map(_is_private, _module(file))) or file.name == "__main__.py":
        return
    body = ast.parse(file.read_text(encoding="utf-8")).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    assigned = [target.id for target in targets if isinstance(target, ast.Name)]
    assert "__all__" in assigned or not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in body)


@pytest.mark.parametrize("file", FILES, ids=lambda file: ".".join(_module(file)))
def test_no_module_is_hidden_by_a_name_of_its_package(file):
    *package, name = _module(file)
    if file.name == "__init__.py" or file.parent == ROOT / "unlearn_ext":
        return
    body = ast.parse((file.parent / "__init__.py").read_text(encoding="utf-8")).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and node.module]
    assert name not in {alias.asname or alias.name for node in imports for alias in node.names}, (
        f"{'.'.join(package)} exports a {name} that is not its module {name}"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: ".".join(_module(file)))
def test_private_names_of_torch_stay_in_one_file(file):
    if file.name == "_torch_internals.py":
        return
    of_tensors = {"_version", "_use_count", "_is_view", "_base", "_spec", "_local_tensor", "_per_optimizer_states"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "torch":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not any(map(_is_private, names)), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = ast.unparse(node).split(".")[0]
            assert owner not in {"torch", "dist"}, f"line {node.lineno}"
            assert node.attr not in of_tensors, f"line {node.lineno}"
