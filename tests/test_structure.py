"""The structure of the project: allowed imports, no circles, no torch where `--help` must be instant."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "evals", "chat", "bench")
MAY_IMPORT = {"engine": (), "evals": ("engine",), "chat": ("engine",), "bench": ("engine", "evals", "chat")}

# A benchmark whose answers are conversations holds them in the chat's own sessions.
EXCEPTIONS = {"evals.judging.answers": ("chat.context", "chat.conversation", "chat.models")}

# Inside the engine each layer imports only from layers below it. Layers in one row do not import each other.
ENGINE_LAYERS = (
    ("engine.runtime",),
    ("engine.kernels",),
    ("engine.quant", "engine.cache", "engine.text"),
    ("engine.layers",),
    ("engine.models",),
    ("engine.checkpoints", "engine.decoding"),
    ("engine.llm", "engine"),  # `engine` itself only re-exports, lazily
    ("engine.cli", "engine.remote"),
    ("engine.finetune",),
    ("engine.demo", "engine.serve", "engine.__main__"),
)
EVALS_LAYERS = (
    ("evals.data",),
    ("evals.runs",),
    ("evals.harness", "evals.analysis"),
    ("evals.plotting", "evals.page"),
    ("evals.studies", "evals.judging"),
    ("evals",),  # the programs
)
CHAT_LAYERS = (
    ("chat.images",),
    ("chat.context",),
    ("chat.memory", "chat.models"),
    ("chat.conversation",),
    ("chat",),  # the agent, its commands and files, the terminal
    ("chat.web",),
    ("chat.__main__",),
)

# These load without torch, so that `--help` is instant and files can be analysed anywhere: they and all that they
# import at module level.
WITHOUT_TORCH = (
    "engine",
    "engine.__main__",
    *(f"engine.cli.{name}" for name in ("parser", "progress", "figures")),
    *(f"engine.runtime.{name}" for name in ("errors", "files", "cycles", "pictures")),
    "engine.checkpoints.embedded",
    "engine.remote.*",
    "engine.quant",
    *(f"engine.serve.{name}" for name in ("__main__", "state", "metrics", "request_log", "server", "threads")),
    *(f"engine.finetune.{name}" for name in ("__main__", "settings", "log", "evaluation")),
    *(f"engine.demo.{name}" for name in ("facts", "people", "pages", "dialogues", "textbook", "questions")),
    "evals.__main__",
    "evals.data.*",
    "evals.analysis.*",
    "evals.plotting.*",
    "evals.page.*",
    *(f"evals.harness.{name}" for name in ("prompts", "fewshot", "task", "protocol", "program", "remote.*")),
    "evals.runs.*",
    "evals.harness.dispatch",
    "evals.harness.workers.*",
    "evals.studies.*",
    "evals.judging.*",
    *(f"evals.{name}" for name in ("mmlu", "hellaswag", "arc", "truthfulqa", "gsm8k", "squad", "mt_bench")),
    *(f"evals.{name}" for name in ("run", "compare", "plots", "report", "timing", "quantization")),
    "engine.decoding.params",
    "engine.serve.__main__",
    "engine.serve.protocol.*",
    "engine.serve.conversation.*",
    "engine.remote.*",
    *(f"chat.{name}" for name in ("__main__", "agent", "terminal", "pipe", "reports", "store")),
    *(f"chat.models.{name}" for name in ("interface", "remote")),  # chats with a server load at once
    *(f"chat.{name}" for name in ("registry", "commands", "memory_commands", "image_commands", "dialogues", "compare")),
    "chat.conversation.*",
    "chat.memory.*",
    "chat.web.*",
    *(f"bench.{name}" for name in ("peers", "plot", "ttft", "load.*")),
)


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    result = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            result[dotted.removesuffix(".__init__")] = path
    return result


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def module_level(tree: ast.Module) -> list[ast.AST]:
    """The statements that run when a module is imported."""
    result: list[ast.AST] = []
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        result.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_type_checking(node):
            pending += ast.iter_child_nodes(node)
    return result


def imported(nodes: list[ast.AST]) -> set[str]:
    """The dotted names in import statements, completed to a module of the project if there is one."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in modules() else node.module)
    return names


class Source(NamedTuple):
    """What the tests read from a module's source, which is parsed once."""

    docstring: str | None
    imports: set[str]  # all, also those inside functions and for type checking
    imports_when_loaded: set[str]


@cache
def source(module: str) -> Source:
    tree = ast.parse(modules()[module].read_text())
    parents = {module.rpartition(".")[0]} & modules().keys()
    when_loaded = imported(module_level(tree)) | parents
    return Source(ast.get_docstring(tree), imported(list(ast.walk(tree))) - {module}, when_loaded)


def loaded_by(module: str) -> set[str]:
    """All modules, of the project and others, that are loaded when this one is imported."""
    loaded, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in loaded:
            loaded.add(name)
            pending += source(name).imports_when_loaded if name in modules() else ()
    return loaded


def unit(module: str, layers: tuple[tuple[str, ...], ...]) -> str:
    """The layer of a module: the longest of their names that it starts with."""
    names = [name for layer in layers for name in layer if module == name or module.startswith(f"{name}.")]
    return max(names, key=len)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_the_allowed_packages(package):
    for module in modules():
        if module.split(".")[0] == package:
            names = [name for name in source(module).imports if not name.startswith(EXCEPTIONS.get(module, ()))]
            others = {name.split(".")[0] for name in names} & set(PACKAGES) - {package}
            assert others <= set(MAY_IMPORT[package]), f"{module} imports {sorted(others)}"


def test_there_is_no_circle_of_imports():
    graph = {module: {name for name in source(module).imports if name in modules()} for module in modules()}
    del graph["engine"]  # which re-exports lazily
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("layers", [ENGINE_LAYERS, EVALS_LAYERS, CHAT_LAYERS], ids=["engine", "evals", "chat"])
def test_layers_import_only_from_layers_below(layers):
    height = {name: number for number, layer in enumerate(layers) for name in layer}
    top = layers[-1][0].split(".")[0]
    upwards = []
    for module in modules():
        if module.split(".")[0] != top or module == "engine":
            continue
        layer = unit(module, layers)
        for name in source(module).imports:
            if name.split(".")[0] != top or name == "engine":
                continue
            other = unit(name, layers)
            if other != layer and height[other] >= height[layer]:
                upwards.append(f"{module} imports {name}")
    assert upwards == []


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_modules_that_need_no_torch_do_not_import_it(name):
    package = name.removesuffix(".*")
    chosen = [module for module in modules() if module.startswith(f"{package}.")] if name != package else [name]
    assert chosen
    for module in chosen:
        assert "torch" not in {other.split(".")[0] for other in loaded_by(module)}, module


def test_no_file_is_longer_than_350_lines():
    tables_of_data = {ROOT / "engine/demo/facts.py"}
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py")]:
        assert path in tables_of_data or len(path.read_text().splitlines()) <= 350, path


def test_transformers_is_imported_only_by_comparisons():
    roots = {module: {name.split(".")[0] for name in source(module).imports} for module in modules()}
    assert {module.split(".")[0] for module in roots if "transformers" in roots[module]} <= {"bench"}


def test_every_module_has_a_docstring():
    assert [module for module in modules() if not source(module).docstring] == []
