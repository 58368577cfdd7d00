"""Who may import what, read from the syntax tree, and constructs that must not appear at all.

The rules are those of `docs/architecture.md`: imports point one way, some libraries have one
importer, and nothing depends on global state or on untrusted code.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SOURCE / "fedms").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_package(module: str) -> bool:
    return FILES[module].name == "__init__.py"


def imported(module: str, tree: ast.AST) -> set[str]:
    """Every module a module imports, wherever in the file, by its most precise name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `from . import x`
                above = module.split(".")[: None if is_package(module) else -1]
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            inside = {name for name in names if name in FILES}
            found |= inside | ({base} if names - inside else set())
    return found


IMPORTS = {name: imported(name, tree) for name, tree in TREES.items()}


def package(module: str) -> str:
    """`core` of `fedms.core.rows`, `cli` of `fedms.cli`; the library's name outside the project."""
    words = module.split(".")
    return words[1] if words[0] == "fedms" and len(words) > 1 else words[0]


def inner(module: str) -> set[str]:
    """Parts of the project that a module imports, but for its own."""
    mine = {package(i) for i in IMPORTS[module] if i.split(".")[0] == "fedms"}
    return mine - {package(module)}


def outer(module: str) -> set[str]:
    """Third-party libraries that a module imports."""
    used = {i.split(".")[0] for i in IMPORTS[module]}
    return used - {"fedms", "__future__"} - set(sys.stdlib_module_names)


ALLOWED = {
    "core": set(),
    "config": set(),
    "data": {"core"},
    "models": {"core"},
    "store": {"core"},
    "algorithms": {"core"},
    "runtimes": {"core", "store"},
    "machine": {"config", "core", "models"},
    "checks": {"config", "core", "models"},
    "build": {"checks", "config", "core", "data", "machine", "models", "algorithms", "runtimes"},
    "identity": {"config", "core", "data", "machine", "models", "store"},
    "reopened": {"config", "store"},
    "outcome": {"core", "models", "store"},
    "details": {"core", "store"},
    "report": {"core", "store"},
    "checkpoints": {"core", "runtimes", "store"},
    "events": {"build", "runtimes"},
    "clients": {"build", "config", "core", "runtimes", "store"},
    "given": {"data"},
    "measures": {"runtimes"},
    "trackers": set(),
    "tracking": {"config", "core", "events", "measures"},
    "course": {
        *("build", "checkpoints", "config", "core", "details", "events", "models", "outcome"),
        *("report", "runtimes", "store"),
    },
    "run": {
        *("build", "checkpoints", "checks", "clients", "config", "core", "course", "data"),
        *("events", "given", "identity", "reopened", "report", "runtimes", "store", "tracking"),
    },
    "api": {
        *("build", "config", "core", "data", "events", "export", "given", "measures", "models"),
        *("newcomers", "progress", "reopened", "run", "runtimes", "store", "use"),
    },
    "bench": {"build", "config", "machine", "core", "models", "run", "runtimes", "store"},
    "deploy": {
        *("build", "config", "core", "data", "identity", "machine", "models"),
        *("outcome", "progress", "run", "runtimes", "store"),
    },
    "compare": {"config", "core", "events", "identity", "run", "store"},
    "progress": {"bench", "config", "core", "events", "report"},
    "inputs": {"core", "data"},
    "use": {"build", "config", "core", "data", "models", "reopened", "store"},
    "hub": {"core"},
    "card": {"hub", "models", "store", "use"},
    "newcomers": {
        *("build", "clients", "config", "core", "data", "deploy", "identity", "models"),
        *("reopened", "runtimes", "store", "use"),
    },
    "export": {"card", "core", "models", "newcomers", "store", "use"},
    "scoring": {"build", "config", "core", "data", "deploy", "identity", "store", "use"},
    "holdings": {"build", "config", "core", "data"},
    "estimate": {"build", "config", "core", "models", "run", "runtimes", "store"},
    "doctor": {"core", "models", "runtimes"},
    "curves": set(),
    "watching": {"store"},
    "live": {"curves", "progress", "tables", "watching"},
    "tables": {"holdings", "progress"},
    "serve": {"core", "data", "inputs", "use"},
    "cli": {
        *("bench", "build", "compare", "config", "core", "deploy", "doctor", "estimate", "events"),
        *(
            "export",
            "holdings",
            "hub",
            "inputs",
            "live",
            "machine",
            "newcomers",
            "progress",
            "report",
            "run",
            "scoring",
            "serve",
            "store",
        ),
        *("tables", "use", "watching"),
    },
    "fedms": {"api", "config", "core"},  # when they are asked for
}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module):
    assert package(module) in ALLOWED, f"{module} is new: say in ALLOWED what it may import"
    assert inner(module) <= ALLOWED[package(module)]


@pytest.mark.parametrize("module", [m for m in FILES if package(m) == "core"])
def test_core_needs_torch_numpy_and_safetensors_alone(module):
    assert outer(module) <= {"torch", "numpy", "safetensors"}


ONE_IMPORTER = {
    # bench.plain is a peer; models.standalone is not of the library: it is put beside exports
    "transformers": {
        f"fedms.{m}" for m in ("models.pretrained", "bench.plain", "models.standalone")
    },
    "peft": {f"fedms.{m}" for m in ("models.adapters", "bench.plain", "models.standalone")},
    "huggingface_hub": {"fedms.hub"},
    "flwr_datasets": {"fedms.data.partition"},
    "pydantic": {  # what people, sites and other programs write
        f"fedms.{m}"
        for m in (
            *("config.errors", "config.method", "config.reading", "config.rounds"),
            *("config.runtime", "config.schema", "config.section", "config.task"),
            *("runtimes.messages", "serve.schema"),
        )
    },
    "typer": {
        f"fedms.cli.{m}"
        for m in ("base", "completion", "looking", "models", "reports", "runs", "serving", "sites")
    },
    "fastapi": {"fedms.serve.app"},
    "starlette": {"fedms.serve.app"},
    "uvicorn": {"fedms.serve.server"},
    "h11": {"fedms.serve.server"},
    "rich": {"fedms.live", "fedms.progress", "fedms.tables"},
    "matplotlib": {"fedms.compare.plots", "fedms.api.plots"},  # to files, and in notebooks
    "tensorboard": {"fedms.trackers.to_tensorboard"},
    "mlflow": {"fedms.trackers.to_mlflow"},
    "wandb": {"fedms.trackers.to_wandb"},
    "trackio": {"fedms.trackers.to_trackio"},
    "scipy": {"fedms.compare.scores"},
}


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_one_importer(library):
    assert {m for m in FILES if library in outer(m)} == ONE_IMPORTER[library]


def test_flower_has_one_importer():
    """The server's app names its types; it does not load it by itself."""
    users = {m for m in FILES if "flwr" in outer(m)} - {"fedms.deploy.app"}
    assert all(user.startswith("fedms.runtimes.flower.") for user in users)
    assert users


def test_few_build():
    users = {m for m in FILES if "build" in inner(m) and package(m) not in ("bench", "cli")}
    few = (
        *(
            "run",
            "course",
            "clients",
            "events",
            "deploy.parts",
            "use",
            "scoring",
            "holdings",
            "estimate",
            "newcomers",
        ),
        "api.federation",
    )
    assert users <= {f"fedms.{m}" for m in few}


def test_what_is_put_beside_exports_needs_nothing_of_the_project():
    assert not any(name.startswith("fedms") for name in IMPORTS["fedms.models.standalone"])
    assert not any("fedms.models.standalone" in names for names in IMPORTS.values())


def test_nobody_imports_the_root_package():
    assert {m for m, names in IMPORTS.items() if "fedms" in names} == set()


def test_only_standard_library_and_typer_are_loaded_for_help():
    """What the command line's module imports on top, before a command runs."""
    modules = [m for m in FILES if package(m) == "cli"]
    top = set()
    for module in modules:
        nodes = [n for n in TREES[module].body if isinstance(n, ast.Import | ast.ImportFrom)]
        top |= imported(module, ast.Module(nodes, [])) - {*modules}
    assert {i.split(".")[0] for i in top} - set(sys.stdlib_module_names) == {"typer"}


def runtime_edges() -> dict[str, set[str]]:
    """Imports between modules of the project, with the packages they load on the way."""
    edges = {}
    for module, names in IMPORTS.items():
        inside = {n for n in names if n in FILES and n != module}
        edges[module] = inside
    return edges


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some cycle, or nothing: what is left when modules without imports are taken away."""
    left = {m: set(names) for m, names in edges.items()}
    while leaves := {m for m, names in left.items() if not names & left.keys()}:
        left = {m: names for m, names in left.items() if m not in leaves}
    return sorted(left)


def test_no_import_cycle():
    edges = runtime_edges()
    assert cycle(edges) == []


def test_cycles_and_imports_are_seen():
    """The checks above can fail: what they look for is found where it is."""
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    text = "def f():\n  import fedms\n  from fedms.core import rows\n  from fedms import nothing"
    assert imported("fedms.build", ast.parse(text)) == {"fedms", "fedms.core.rows"}
    assert imported("fedms.core.rows", ast.parse("from . import seeds")) == {"fedms.core.seeds"}
    assert imported("fedms.core.rows", ast.parse("from ..data import x")) == {"fedms.data"}


def dotted(node: ast.AST) -> str:
    """`torch.manual_seed` of an attribute or name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "print",
    "breakpoint",
    "__import__",
    "torch.load",
    "torch.save",
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_num_threads",
    "torch.use_deterministic_algorithms",
    "torch.set_default_dtype",
    "random.seed",
    "np.random.seed",
    "numpy.random.seed",
    "os.system",
    "os.popen",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "random"}


def unsafe(tree: ast.AST) -> list[str]:
    """What must not be in the library, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in FORBIDDEN_CALLS or name.endswith(".set_num_threads"):
                found.append(f"{node.lineno}: {name}()")
            for word in node.keywords:
                risky = word.arg == "trust_remote_code" or (name, word.arg) == (
                    "subprocess.run",
                    "shell",
                )
                if risky and not (isinstance(word.value, ast.Constant) and not word.value.value):
                    found.append(f"{node.lineno}: {word.arg}")
                if word.arg == "allow_pickle" and not (
                    isinstance(word.value, ast.Constant) and word.value.value is False
                ):
                    found.append(f"{node.lineno}: allow_pickle")
        elif isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = {dotted(k) if k else "" for k in kinds} & {"", "Exception", "BaseException"}
            again = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
            if broad and not again:  # cleaning up and raising again hides nothing
                found.append(f"{node.lineno}: broad except")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            bad = {n.split(".")[0] for n in names} & FORBIDDEN_MODULES
            found += [f"{node.lineno}: import {n}" for n in bad]
    return found


MAY = {
    "fedms.runtimes.workers": "torch.set_num_threads()",  # as the user says, and put back
    "fedms.runtimes.flower.virtual": "broad except",  # a thread's; told where clients are asked
    "fedms.progress": "import random",  # to put back what rich draws when it is imported
    "fedms.runtimes.site": "broad except",  # no question ends a site; it is printed, and refused
}


@pytest.mark.parametrize("module", FILES)
def test_nothing_unsafe_or_global(module):
    allowed = MAY.get(module, "nothing")
    assert [entry for entry in unsafe(TREES[module]) if not entry.endswith(allowed)] == []


UNSAFE = [
    "import pickle",
    "from random import seed",
    "x = torch.load(path)",
    "eval('1')",
    "print(1)",
    "np.random.seed(0)",
    "torch.set_num_threads(1)",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "AutoModel.from_pretrained(name, trust_remote_code=trust)",
    "np.load(path, allow_pickle=True)",
    "try:\n  f()\nexcept Exception:\n  pass",
    "try:\n  f()\nexcept:\n  pass",
    "try:\n  f()\nexcept (OSError, BaseException) as e:\n  raise ValueError from e",
]


@pytest.mark.parametrize("text", UNSAFE)
def test_unsafe_code_is_seen(text):
    assert len(unsafe(ast.parse(text))) == 1


def test_raising_again_is_no_broad_except():
    assert unsafe(ast.parse("try:\n  f()\nexcept BaseException:\n  g()\n  raise")) == []
