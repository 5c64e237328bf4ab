"""The house keeps its order: imports point downwards, each outside library has one home, and some doors stay shut.

The tables below are the order. A module that is new belongs in `LAYERS`; what else it may do is said beside it.
"""

from __future__ import annotations

import ast
import builtins
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ddpm_cli

PACKAGE = Path(ddpm_cli.__file__).parent

# Layer of each module, or of each package as a whole; a file imports from lower layers and from its own package.
LAYERS = {
    "errors": 0,
    "config": 0,
    "presets": 0,
    "files": 0,
    "memory": 0,
    "sampling": 0,
    "stage": 0,
    "diffusion": 1,
    "dropout": 1,
    "group_norm": 1,
    "attention": 1,
    "resblock": 1,
    "unet": 1,
    "pixels": 1,
    "rng": 1,
    "distributed": 1,
    "denoiser": 2,
    "data": 2,
    "checkpoint": 2,
    "hub": 2,
    "convert": 3,
    "generate": 3,
    "steering": 4,
    "evaluate": 3,
    "neighbors": 3,
    "batches": 3,
    "train": 3,
    "model": 4,
    "run": 4,
    "recipe": 4,
    "plan": 4,
    "cost": 4,
    "compiling": 4,
    "fitting": 4,
    "settings": 3,
    "published": 4,
    "info": 4,
    "card": 4,
    "pause": 4,
    "ui": 4,
    "api": 5,
    "cli": 5,
}

# Who else may know whom, within one layer.
NEIGHBOURS = {
    "config": {"errors"},
    "presets": {"errors", "config"},
    "files": {"errors"},
    "sampling": {"errors"},
    "attention": {"group_norm"},
    "resblock": {"dropout", "group_norm"},
    "unet": {"attention", "group_norm", "resblock"},
    "hub": {"checkpoint"},
    "plan": {"run"},  # a plan is a run that is not yet one
    "run": {"compiling"},
    "fitting": {"plan", "run"},
    "train": {"batches"},
    "cost": {"fitting", "plan", "run"},
    "info": {"model", "published"},
    "pause": {"model"},
}

# The one home of each outside library: modules, or packages as a whole; "" is ddpm_cli/__init__.py.
ANYWHERE: set[str] = set()
HOMES = {
    "numpy": ANYWHERE,
    "torch": ANYWHERE,
    "torch.distributed": {"distributed", "train"},
    "huggingface_hub": {"hub"},
    "safetensors": {"checkpoint"},
    "filelock": {"checkpoint"},
    "rich": {"ui"},
    "click": {"cli"},
    "PIL": {"pixels", "data", "ui.captions", "ui.pictures", "ui.plot", "ui.preview", "ui.sheet"},
    "importlib.import_module": {"", "cli"},  # what it imports cannot be seen here
}

# Modules, or packages as a whole, that are imported without torch, so that the command line answers at once...
WITHOUT_TORCH = {
    "errors",
    "config",
    "presets",
    "files",
    "stage",
    "pixels",
    "rng",
    "memory",
    "sampling",
    "diffusion.schedule",
    "diffusion.spacing",
    "data",
    "neighbors",
    "ui",
    "cli",
}
# ... except what a command imports only when it runs.
WITH_TORCH = {
    "cli.denoising",
    "cli.inpainting",
    "cli.interpolating",
    "cli.making",
    "cli.measuring",
    "cli.models",
    "cli.output",
    "cli.progressing",
    "cli.publishing",
    "cli.sampling",
    "cli.sharing",
    "cli.training",
}

# Exempt from the layers: the two doors, ``import ddpm_cli`` and ``python -m ddpm_cli``.
DOORS = {"", "__main__"}

# Names that nobody uses, with what to do instead.
NO_PICKLE = "no pickle is read but by checkpoint.pickles, and none written; use safetensors, json or npy"
NO_GLOBAL_RNG = "randomness is a pure function of its name; use rng, or a generator seeded by rng.torch_seed"
NO_CODE = "nothing from a file or a user is run as code"
FORBIDDEN = {
    "pickle": NO_PICKLE,
    "_pickle": NO_PICKLE,
    "cloudpickle": NO_PICKLE,
    "dill": NO_PICKLE,
    "joblib": NO_PICKLE,
    "marshal": NO_PICKLE,
    "shelve": NO_PICKLE,
    "torch.load": NO_PICKLE,
    "torch.save": NO_PICKLE,
    "torch.serialization": NO_PICKLE,
    "random": NO_GLOBAL_RNG,
    "numpy.random": NO_GLOBAL_RNG,
    "torch.random": NO_GLOBAL_RNG,
    "torch.seed": NO_GLOBAL_RNG,
    "torch.manual_seed": NO_GLOBAL_RNG,
    "torch.set_rng_state": NO_GLOBAL_RNG,
    "torch.cuda.manual_seed": NO_GLOBAL_RNG,
    "torch.cuda.manual_seed_all": NO_GLOBAL_RNG,
    "eval": NO_CODE,
    "exec": NO_CODE,
    "__import__": NO_CODE,
    "hash": "it differs from process to process; use hashlib",
}
# Parts of forbidden modules that are harmless.
ALLOWED = {"numpy.random.Generator", "numpy.random.Philox"}
# The one file in which a forbidden name may stand, each call of it with these arguments.
EXCEPTIONS = {"torch.load": ("checkpoint.pickles", {"weights_only": "True", "map_location": "'cpu'"})}

# What draws from torch's global generator unless it is given another one.
DRAWS = {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")}
DRAWS |= {f"torch.{name}_like" for name in ("rand", "randn", "randint")}
DRAWS_IN_PLACE = {f"{name}_" for name in ("normal", "uniform", "bernoulli", "random", "exponential", "log_normal")}


@dataclass(frozen=True)
class Source:
    """One file of the package: its name without ``ddpm_cli.``, whether it is a package, and its syntax tree."""

    module: str
    is_package: bool
    tree: ast.Module

    @property
    def part(self) -> str:
        """The module or package of `LAYERS` that it belongs to."""
        return self.module.split(".")[0]


def sources(package: Path) -> list[Source]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found.append(Source(module, is_package, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return found


def imports(source: Source) -> Iterator[tuple[ast.stmt, str, str]]:
    """(statement, local name, full name) of all that a file imports, wherever it does so; ours begin with a dot."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = source.module.split(".") if source.module else []
                inside = inside[: len(inside) - node.level + source.is_package]
                base = "." + ".".join([*inside, *filter(None, [node.module])])
            for alias in node.names:
                yield node, alias.asname or alias.name, f"{base.rstrip('.')}.{alias.name}"


def ours(name: str) -> str | None:
    """The module of this package that a full name is in (``.config.UNetConfig`` or ``ddpm_cli.config``), or None."""
    if name.startswith("."):
        return name[1:]
    return name.partition(".")[2] if name.split(".")[0] == "ddpm_cli" else None


def names(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """(node, full name) of all that a file imports or mentions, as far as its imports tell: ``numpy.random.seed``."""
    known = {}
    for node, local, full in imports(source):
        yield node, full
        # `import a.b` binds a; `import a.b as c` binds c to a.b.
        known[local.split(".")[0]] = full if "." not in local else local.split(".")[0]
    inner = {id(node.value) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            first, _, rest = ast.unparse(node).partition(".")
            if first in known or hasattr(builtins, first):
                yield node, ".".join(filter(None, [known.get(first, first), rest]))


def within(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of these, or inside one of them."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def violations(package: Path) -> list[str]:
    """Every breach of the tables above in the files of a package, one line each."""
    rules = (
        unknown_module,
        eager_door,
        upward_import,
        outside_its_home,
        forbidden,
        careless_exception,
        draw_from_global_generator,
    )
    return [
        f"{source.module or '__init__'}:{getattr(node, 'lineno', 1)}: {message}"
        for source in sources(package)
        for rule in rules
        for node, message in rule(source)
    ]


def unknown_module(source: Source) -> Iterator[tuple[ast.AST, str]]:
    if source.module not in DOORS and source.part not in LAYERS:
        yield source.tree, f"{source.part!r} has no layer yet: add it to LAYERS in tests/test_layers.py"


def eager_door(source: Source) -> Iterator[tuple[ast.AST, str]]:
    if source.module == "":
        for node, _, full in imports(source):
            if ours(full) is not None and node in source.tree.body:
                yield node, f"imports {full} when ddpm_cli is imported: resolve it in __getattr__"


def upward_import(source: Source) -> Iterator[tuple[ast.AST, str]]:
    if source.module in DOORS or source.part not in LAYERS:
        return
    layer = LAYERS[source.part]
    for node, _, full in imports(source):
        part = (ours(full) or "__version__").split(".")[0]
        if part in ("__version__", source.part) or part in NEIGHBOURS.get(source.part, ()):
            continue
        if part not in LAYERS:
            yield node, f"imports {part!r}, which is no module of LAYERS in tests/test_layers.py"
        elif LAYERS[part] >= layer:
            rule = "imports point downwards (LAYERS and NEIGHBOURS in tests/test_layers.py)"
            yield node, f"layer {layer} imports {part}, of layer {LAYERS[part]}: {rule}"


def outside_its_home(source: Source) -> Iterator[tuple[ast.AST, str]]:
    for node, full in names(source):
        library = full.split(".")[0]
        if ours(full) is not None or hasattr(builtins, library):
            continue
        if library not in HOMES and library not in sys.stdlib_module_names:
            yield node, f"{library} has no home yet: add it to HOMES in tests/test_layers.py"
        for name, homes in HOMES.items():
            if within(full, [name]) and homes is not ANYWHERE and not within(source.module, homes):
                yield node, f"{full} outside its home ({', '.join(sorted(homes))}): HOMES in tests/test_layers.py"


def forbidden(source: Source) -> Iterator[tuple[ast.AST, str]]:
    for node, full in names(source):
        for name, instead in FORBIDDEN.items():
            excepted = name in EXCEPTIONS and source.module == EXCEPTIONS[name][0]
            if within(full, [name]) and not within(full, ALLOWED) and not excepted:
                yield node, f"{name}: {instead}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield node, f"allow_pickle: {NO_PICKLE}"


def careless_exception(source: Source) -> Iterator[tuple[ast.AST, str]]:
    calls = {id(node.func): node for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
    for node, full in names(source):
        place, needed = EXCEPTIONS.get(full, ("", {}))
        keywords = calls[id(node)].keywords if id(node) in calls else []
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
        if source.module == place and not needed.items() <= given.items():
            arguments = ", ".join(f"{name}={value}" for name, value in needed.items())
            yield node, f"{full} other than as a call with {arguments}"


def draw_from_global_generator(source: Source) -> Iterator[tuple[ast.AST, str]]:
    known = {id(node): full for node, full in names(source)}
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "generator" for keyword in node.keywords):
            continue
        full = known.get(id(node.func), "")
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if full in DRAWS or method in DRAWS_IN_PLACE:
            yield node, f"{full or method} without generator=: {NO_GLOBAL_RNG}"


def test_the_package_keeps_its_order() -> None:
    if found := violations(PACKAGE):
        pytest.fail("\n".join(found), pytrace=False)


def test_every_file_was_looked_at() -> None:
    modules = {source.module for source in sources(PACKAGE)}
    assert {"", "errors", "config", "diffusion", "diffusion.schedule", "rng"} <= modules
    assert len(modules) == len(list(PACKAGE.rglob("*.py")))


# What the checker must find: a file, what stands in it, and a part of the complaint.
WRONG = {
    "upwards": ("unet.py", "from .train import train", "layer 1 imports train, of layer 3"),
    "upwards from a package": ("diffusion/process.py", "from ..data import Images", "imports data, of layer 2"),
    "upwards, absolute": ("unet.py", "import ddpm_cli.checkpoint.store", "imports checkpoint, of layer 2"),
    "upwards, absolute from": ("unet.py", "from ddpm_cli.hub import pull", "imports hub, of layer 2"),
    "upwards, the module itself": ("unet.py", "from . import generate", "imports generate, of layer 3"),
    "upwards, from the root": ("unet.py", "from ddpm_cli import generate", "imports generate, of layer 3"),
    "upwards, lazily": ("data/find.py", "def f():\n    from ..model import load", "imports model, of layer 4"),
    "upwards, for types": (
        "rng.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .denoiser import Denoiser",
        "imports denoiser, of layer 2",
    ),
    "sideways": ("pixels.py", "from .rng import normal", "layer 1 imports rng, of layer 1"),
    "sideways in layer 2": ("checkpoint/store.py", "from ..data import Images", "imports data, of layer 2"),
    "sideways at the bottom": ("errors.py", "from .config import UNetConfig", "layer 0 imports config, of layer 0"),
    "not back from a neighbour": ("checkpoint/store.py", "from .. import hub", "imports hub, of layer 2"),
    "a public name through the front door": (
        "train.py",
        "from ddpm_cli import load",
        "imports 'load', which is no module",
    ),
    "an unknown module": ("extras.py", "", "'extras' has no layer yet: add it to LAYERS in tests/test_layers.py"),
    "an unknown package": ("plugins/one.py", "", "'plugins' has no layer yet"),
    "an eager front door": ("__init__.py", "from .model import load", "when ddpm_cli is imported"),
    "click below": ("train.py", "import click", "click outside its home (cli)"),
    "rich below": (
        "evaluate.py",
        "from rich.progress import track",
        "rich.progress.track outside its home (ui)",
    ),
    "PIL in another file of a package": (
        "ui/console.py",
        "from PIL import Image",
        "(data, pixels, ui.captions, ui.pictures, ui.plot, ui.preview, ui.sheet)",
    ),
    "safetensors lazily": ("train.py", "def f():\n    import safetensors.torch as st", "outside its home (checkpoint)"),
    "the Hub": ("checkpoint/store.py", "import huggingface_hub", "outside its home (hub)"),
    "torch.distributed imported": ("generate.py", "import torch.distributed as dist", "home (distributed, train)"),
    "torch.distributed imported from": ("generate.py", "from torch import distributed", "home (distributed, train)"),
    "torch.distributed used": ("generate.py", "import torch\ntorch.distributed.barrier()", "home (distributed, train)"),
    "an import that cannot be seen": (
        "train.py",
        "import importlib\nimportlib.import_module('x')",
        "importlib.import_module outside",
    ),
    "an unknown library": ("ui/pictures.py", "import matplotlib.pyplot as plt", "matplotlib has no home yet"),
    "pickle": ("checkpoint/store.py", "import pickle", "pickle: no pickle"),
    "pickle lazily": ("checkpoint/store.py", "def f():\n    from pickle import loads", "pickle: no pickle"),
    "torch.load": ("checkpoint/store.py", "import torch as th\nth.load('x')", "torch.load: no pickle"),
    "torch.load, its default": (
        "checkpoint/pickles.py",
        "import torch\ntorch.load('x', map_location='cpu')",
        "torch.load other than as a call with weights_only=True",
    ),
    "torch.load, careless": (
        "checkpoint/pickles.py",
        "import torch\ntorch.load('x', map_location='cpu', weights_only=False)",
        "torch.load other than as a call with weights_only=True",
    ),
    "torch.load, perhaps": (
        "checkpoint/pickles.py",
        "import torch\ndef f(x):\n    torch.load('x', map_location='cpu', weights_only=x)",
        "torch.load other than as a call",
    ),
    "torch.load, handed on": ("checkpoint/pickles.py", "import torch\nread = torch.load", "other than as a call"),
    "torch.save with the reader": ("checkpoint/pickles.py", "import torch\ntorch.save(1, 'x')", "torch.save: no"),
    "load from torch": ("checkpoint/store.py", "from torch import load", "torch.load: no pickle"),
    "torch.save": ("checkpoint/store.py", "import torch\nsave = torch.save", "torch.save: no pickle"),
    "allow_pickle": (
        "data/arrays.py",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "allow_pickle: no pickle",
    ),
    "allow_pickle perhaps": ("data/arrays.py", "import numpy as np\nnp.load('x', allow_pickle=1 > 0)", "allow_pickle"),
    "eval": ("config.py", "eval('1')", "eval: nothing"),
    "exec": ("config.py", "exec('1')", "exec: nothing"),
    "hash": ("rng.py", "seed = hash('a')", "hash: it differs"),
    "random": ("data/fit.py", "import random", "random: randomness"),
    "numpy's global generator": ("data/fit.py", "import numpy as np\nnp.random.seed(1)", "numpy.random: randomness"),
    "numpy's generator, unnamed": ("data/fit.py", "from numpy.random import default_rng", "numpy.random: randomness"),
    "torch's global seed": ("train.py", "import torch\ntorch.manual_seed(0)", "torch.manual_seed: randomness"),
    "torch's global generator": (
        "train.py",
        "import torch\ntorch.randn(3)",
        "randn without generator=",
    ),
    "noise in place": ("train.py", "def f(x):\n    return x.normal_()", "normal_ without generator=: randomness"),
}

# And what it must let pass.
RIGHT = {
    "unet.py": "import torch\nfrom .config import UNetConfig\nx = torch.randn(3, generator=torch.Generator())",
    "rng.py": "import numpy as np\ng = np.random.Generator(np.random.Philox(key=1))",
    "presets.py": "from .config import UNetConfig\nfrom . import errors",
    "diffusion/process.py": "from . import schedule\nfrom .schedule import linear\nfrom ..errors import DdpmError",
    "diffusion/schedule.py": "import numpy as np\ntable = np.load('x', allow_pickle=False)",
    "hub.py": "import huggingface_hub\nfrom .checkpoint import store",
    "train.py": "import torch.distributed as dist\nfrom .data import Images\nfrom . import __version__\ndist.barrier()",
    "checkpoint/__init__.py": "from .store import save",
    "checkpoint/pickles.py": "import torch\ntorch.load('x', weights_only=True, map_location='cpu', mmap=True)",
    "checkpoint/store.py": "from safetensors.torch import save_file as save\nimport filelock",
    "cli/__init__.py": "import click\nfrom .options import shared\nimport ddpm_cli.cli.noise",
    "cli/noise.py": "def f(model):\n    from ..ui import console\n    model.eval()",
    "ui/pictures.py": "from PIL import Image\nimport rich.text",
    "__init__.py": "def __getattr__(name):\n    from . import api\n    return getattr(api, name)",
    "__main__.py": "from .cli import main",
}


@pytest.mark.parametrize("name", WRONG)
def test_the_checker_finds(name: str, tmp_path: Path) -> None:
    file, text, complaint = WRONG[name]
    path = tmp_path / "ddpm_cli" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = violations(tmp_path / "ddpm_cli")
    assert len(found) == 1, found
    assert complaint in found[0]
    assert found[0].startswith(file.removesuffix(".py").replace("/", "."))


def test_the_checker_lets_pass_what_is_right(tmp_path: Path) -> None:
    for file, text in RIGHT.items():
        path = tmp_path / "ddpm_cli" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert violations(tmp_path / "ddpm_cli") == []


# Runs in a process of its own: for each module one fork, in which it is the first of ours to be imported, with
# warnings as errors. Loading torch once beforehand, where it is allowed, makes that affordable.
IMPORT_ALONE = """
import os, sys, traceback, warnings
import numpy, PIL.Image
torch_allowed = sys.argv[1] == "with torch"
if torch_allowed:
    import torch
warnings.simplefilter("error")
for module in sys.argv[2:]:
    with warnings.catch_warnings(action="ignore"):
        child = os.fork()
    if child == 0:
        try:
            __import__(module)
            assert torch_allowed or "torch" not in sys.modules, "imports torch"
        except BaseException:
            print(f"importing {module} alone:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("torch", ["with torch", "without torch"])
def test_each_module_can_be_imported_alone_and_light_ones_leave_torch_out(torch: str) -> None:
    modules = {source.module for source in sources(PACKAGE)} - {"__main__"}
    light = {m for m in modules if m == "" or (within(m, WITHOUT_TORCH) and not within(m, WITH_TORCH))}
    names = [f"ddpm_cli.{m}".rstrip(".") for m in sorted(light if torch == "without torch" else modules - light)]
    assert names
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALONE, torch, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode or done.stderr:
        pytest.fail(done.stderr, pytrace=False)
