"""The pages of the reference, one a package, from what the packages export: every public name under its own module.

A module's docstring opens its section, so that a kernel stands below the text that explains it. `conf.py` writes the
pages before each build; they are not kept.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """One package.

    Attributes:
        package: its name.
        opening: the first paragraph.
        modules: shown with all that they define; none: what the package exports, by the modules that define it.
        also: what else, by full names: types of what the exported names take and return.
    """

    package: str
    opening: str
    modules: Sequence[str] = ()
    also: Sequence[str] = ()


PAGES = (
    Page(
        "smc_bridge",
        "Names are imported from `smc_bridge` itself, as in `from smc_bridge import smc`; so are `load_pair` and "
        "`Pair` of [the models](smc_bridge.models.md), and `check` of [the tests](smc_bridge.testing.md). Types of "
        "what plug-ins take and return, such as `Asked` and the protocol of a proposal, are imported from the "
        "modules that they stand under.",
        also=(
            "smc_bridge.kernels.importance.Lanes", "smc_bridge.kernels.importance.WeightRule",
            "smc_bridge.kernels.protocol.StoppingKernel", "smc_bridge.proposals.protocol.Asked",
            "smc_bridge.proposals.protocol.Proposal", "smc_bridge.randomness.Source", "smc_bridge.result.Forwards",
            "smc_bridge.trace.StepRecord",
        ),
    ),
    Page("smc_bridge.testing", "Every name here is imported from `smc_bridge.testing`."),
    Page(
        "smc_bridge.models", "Names are imported from the modules that they stand under.",
        ("pairs", "own", "protocols", "conventions", "prompts", "tabular"),
    ),
    Page(
        "smc_bridge.analysis",
        "Every name here is imported from `smc_bridge.analysis`. It needs `pip install smc-bridge[analysis]`.",
    ),
)


def shown(page: Page) -> dict[str, list[str]]:
    """Module -> names of it that the page shows: what the package exports, but for what other pages are about."""
    spec = find_spec(page.package)
    assert spec is not None
    assert spec.origin is not None
    imports = [
        node for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smc_bridge.")
    ]
    found: dict[str, list[str]] = {}
    elsewhere = tuple(f"{other.package}." for other in PAGES if other.package not in ("smc_bridge", page.package))
    for node in imports:
        if node.module != "smc_bridge.exports" and not str(node.module).startswith(elsewhere):
            found.setdefault(str(node.module), []).extend(alias.asname or alias.name for alias in node.names)
    for name in page.also:
        module, _, last = name.rpartition(".")
        found.setdefault(module, []).append(last)
    return dict(sorted(found.items()))


def section(module: str, names: Iterable[str] = ()) -> str:
    """A heading and the module's docstring with these members, or with all."""
    members = ", ".join(sorted(names))
    return f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members: {members}\n```\n"


def text(page: Page) -> str:
    """A page in Markdown."""
    if page.modules:
        sections = [section(f"{page.package}.{name}") for name in page.modules]
    else:
        sections = [section(module, names) for module, names in shown(page).items()]
    return "\n".join([f"# {page.package}\n", f"{page.opening}\n", *sections])


def write_pages(folder: Path) -> None:
    """Write what has changed, so that a second build is short."""
    folder.mkdir(exist_ok=True)
    for page in PAGES:
        path = folder / f"{page.package}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text(page):
            path.write_text(text(page), encoding="utf-8")
