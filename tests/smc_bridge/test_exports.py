"""Public names are imported when they are asked for, and mean the same whatever was imported before."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from smc_bridge.exports import _homes

ROOT = Path(__file__).parents[2]
PACKAGES = ["smc_bridge", "smc_bridge.analysis", "smc_bridge.analysis.comparison", "smc_bridge.analysis.study"]

#: Ways to come by `smc`, each in packages that are imported anew.
ORDERS = [
    "from smc_bridge import smc", "import smc_bridge.engine.sampler", "import smc_bridge; smc_bridge.smc",
    "import smc_bridge.decode; import smc_bridge; smc_bridge.Sampler",
    "from smc_bridge import *", "import smc_bridge.analysis.exact_law, smc_bridge.analysis.comparison.comparing",
]
LIGHT = """
import sys
from smc_bridge.cli import main
code = main({argv!r})
heavy = [name for name in ("torch", "transformers", "scipy", "pyro", "pandas", "matplotlib") if name in sys.modules]
assert code == 0 and not heavy, (code, heavy)
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def anew() -> Iterator[None]:
    """The packages as if nothing of them was imported; afterwards they are as they were."""
    own = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "smc_bridge"}
    for name in own:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "smc_bridge"]:
        del sys.modules[name]
    sys.modules.update(own)


@pytest.mark.parametrize("order", ORDERS)
def test_the_preset_is_the_preset_in_every_order_of_imports(anew: None, order: str) -> None:
    exec(order, {})
    import smc_bridge
    import smc_bridge.analysis.comparison
    import smc_bridge.engine.sampler
    from smc_bridge import analysis, smc
    from smc_bridge.engine.presets import smc as preset

    assert smc is preset is smc_bridge.smc
    for public in (analysis.ess, analysis.oracle, analysis.comparison.compare):
        assert isinstance(public, FunctionType), public


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_the_command_line_starts_without_torch(argv: list[str]) -> None:
    """Seconds of a processor are another machine's; what takes them is the import of these packages."""
    out = python(LIGHT.format(argv=argv))
    assert out.startswith(("usage: smc-bridge", "smc-bridge 0."))


def test_the_parser_of_every_command_is_made_without_torch() -> None:
    code = "".join(LIGHT.format(argv=[name, "--help"]) for name in ("decode", "compare", "certify", "study", "plot"))
    assert python(code).count("usage: smc-bridge") == 5


@pytest.mark.parametrize("package", [*PACKAGES, "smc_bridge.testing", "smc_bridge.models"])
def test_no_public_function_shares_its_name_with_a_module(package: str) -> None:
    module = import_module(package)
    public = {name for name in getattr(module, "__all__", ()) if not isinstance(getattr(module, name), ModuleType)}
    assert not public.intersection(found.name for found in pkgutil.iter_modules(module.__path__))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_one_home(package: str) -> None:
    module = import_module(package)
    homes = _homes(package)
    assert sorted(homes) == sorted(module.__all__)
    for name, home in homes.items():
        assert getattr(module, name) is getattr(import_module(home), name)
    assert set(module.__all__) <= set(dir(module))


def test_a_name_that_is_not_there_is_no_attribute() -> None:
    import smc_bridge

    assert not hasattr(smc_bridge, "beam")
    with pytest.raises(ImportError, match="beam"):
        exec("from smc_bridge import beam")
