"""The registry: spellings, options from signatures, plug-ins; and that a method's name stands in one file."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from smc_bridge import registry, smc
from smc_bridge.analysis.study.plan import Axes
from smc_bridge.cli import main
from smc_bridge.commands.methods import page, read_figures, table
from smc_bridge.models.learned import PARTS
from smc_bridge.patterns import clash, met
from smc_bridge.registry import GROUP, METHODS, Method, method, spelled, spelled_list, unavailable
from smc_bridge.signature import argument_help, read_options
from tests.toys import LIMIT, toy_pair

ROOT = Path(__file__).parents[1]
PRODUCT = ("smc_bridge", "models", "analysis", "benchmarks")
#: Data of the benchmarks that lists what tables show, as a user would on a command line.
DATA = (ROOT / "benchmarks" / "tables.toml",)
#: Kinds of models, and learned parts, wherever they stand by themselves.
MODELS = ("ar", "dlm", *PARTS)
#: Files where a method's name alone is something else: a stream of random numbers, whose draws depend on the word, what
#: a program is called that is made by hand, and what a result is of that is; the file that names the default; and that
#: of parts by name, where a proposal is called as the published decoder whose law it has.
ELSEWHERE = {
    "smc_bridge/names.py",
    "smc_bridge/streams.py", "smc_bridge/engine/program.py", "smc_bridge/result.py", "smc_bridge/methods/__init__.py",
    "smc_bridge/canvas/rules.py", "smc_bridge/methods/canvas.py",
}


def own() -> list[Method]:
    """Methods of the package, whatever else is installed."""
    return [each for each in METHODS.values() if each.make.__module__.startswith("smc_bridge.")]


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    len(METHODS)
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    monkeypatch.setattr(registry, "_BROKEN", {})


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and texts of the strings of a file that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documents = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.lineno, node.value


def methods_in(text: str) -> set[str]:
    """Methods that a string names or lists; what has a hyphen is no word of a sentence, wherever it stands."""
    listed = re.fullmatch(r"\s*[\w=./-]+([,|]\s*[\w=./-]+)*\s*", text)
    pieces = re.split(r"[,|]\s*", text.strip()) if listed else []
    words = {*pieces, *re.findall(r"(?<![\w-])[a-z]\w*(?:-[\w<>]+)+(?![\w-])", text)}
    return {name for word in words for name in named_by(word)}


@cache
def named_by(word: str) -> frozenset[str]:
    """Methods that a word is a name or an alias of."""
    return frozenset(
        each.name for each in own() for pattern in (each.name, *each.aliases)
        if word == pattern or met(pattern, word) is not None
    )


def test_a_method_stands_in_one_file() -> None:
    """Its name and what its aliases mean, also in lists. The exports of `smc_bridge` name functions."""
    elsewhere = []
    for path in sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")):
        if path == ROOT / "smc_bridge" / "__init__.py":
            continue
        file = path.relative_to(ROOT)
        elsewhere += [
            f"{file}:{line}: {name} in {text!r}" for line, text in strings(path) for name in methods_in(text)
            if METHODS[name].make.__module__ != ".".join(file.with_suffix("").parts)
            and not (text.strip() in METHODS and (text.strip() in MODELS or file.as_posix() in ELSEWHERE))
        ]
    data = {path for folder in PRODUCT for kind in ("*.toml", "*.json") for path in (ROOT / folder).rglob(kind)}
    elsewhere += [
        f"{path.relative_to(ROOT)}: {', '.join(sorted(found))}" for path in sorted(data.difference(DATA))
        if (found := methods_in(path.read_text(encoding="utf-8")))
    ]
    assert elsewhere == [], "\n".join(elsewhere)


@pytest.mark.parametrize(("text", "names"), [
    ("smc-4", {"smc"}), ("smc-2x3", {"smc"}), ("one such as tree-32: try it", {"tree-walk"}),
    ("smc-<particles>", {"smc"}), ("smc, N particles", set()),
    ("dlm-2-entropy,paper", {"dlm", "paper"}), ("smc", {"smc"}), ("smc,kernel=block", {"smc"}),
    ("the paper says", set()), ("smc-bridge", set()), ("smc-0", set()),
])
def test_a_string_names_a_method_by_any_spelling(text: str, names: set[str]) -> None:
    assert methods_in(text) == names


@pytest.mark.parametrize(("text", "name", "options"), [
    ("smc", "smc", {}),
    ("smc-8", "smc", {"particles": 8}),
    ("smc-2x3", "smc", {"particles": 2, "lanes": 3}),
    ("smc-4,w=0.5", "smc", {"particles": 4, "w": 0.5}),
    ("tree-32", "tree-walk", {"nodes": 32}),
    ("smc, kernel=block ,top_k=none,compile=true", "smc", {"kernel": "block", "top_k": None, "compile": True}),
    ("smc,lanes=2,proposal_temperature=0.2/0.7", "smc", {"lanes": 2, "proposal_temperature": [0.2, 0.7]}),
    ("smc,proposal_temperature=1", "smc", {"proposal_temperature": 1.0}),
])
def test_spellings(text: str, name: str, options: dict[str, Any]) -> None:
    found = spelled(text)
    assert (found.method.name, dict(found.options)) == (name, options)
    assert found.make(toy_pair()).name == found.text


@pytest.mark.parametrize("text", [
    "smc,lanes=2,proposal_temperature=0.2/0.7",
    " smc ,\nlanes = 2, proposal_temperature\t=0.2/0.7\n",
])
def test_a_spelling_is_kept_without_blanks(text: str) -> None:
    found = spelled(text)
    assert found.text == "smc,lanes=2,proposal_temperature=0.2/0.7"
    assert [each.text for each in spelled_list(text)] == [found.text]


def test_a_piece_of_a_list_with_an_equals_sign_belongs_to_the_method_before_it() -> None:
    found = spelled_list("smc-4,smc,particles=4,w=0.5,paper")
    assert [each.text for each in found] == ["smc-4", "smc,particles=4,w=0.5", "paper"]


@pytest.mark.parametrize(("text", "words"), [
    ("zzzz", "method = 'zzzz': choose from"),
    ("papr", "method = 'papr': did you mean paper? choose from"),
    ("smc-0", "method = 'smc-0': did you mean smc"),
    ("smc,partcles=3", "partcles is no option of smc: did you mean particles? it has particles, lanes"),
    ("smc,kernel=blok", "kernel = 'blok': did you mean block? choose from rejection"),
    ("smc,particles=many", "particles = 'many': give a whole number"),
    ("smc,compile=maybe", "compile = 'maybe': give true or false"),
    ("smc,proposal_temperature=a/b", "proposal_temperature = 'a/b': give none or a number or numbers with / between"),
    ("smc,=3", "'' is no option of smc: it has particles, lanes"),
    ("smc,wide\n0=3", "wide 0 is no option of smc"),
    ("smc,w", "write options as option=value, not 'w'"),
    ("smc-4,particles=3", "says particles twice"),
    ("plain-is,kernel=block", "kernel is no option of plain-is"),
])
def test_what_is_unknown_is_one_line_with_the_nearest(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        spelled(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "value", "close"), [
    ("kernel", "blok", "block"), ("proposal", "chian", "chain"), ("resampler", "sistematic", "systematic"),
    ("intermediate", "mixtur", "mixture"), ("weight", "balanse", "balance"), ("trigger", "alway", "always"),
])
def test_a_part_of_no_known_name_is_answered_with_the_nearest(option: str, value: str, close: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{option} = {value!r}: did you mean {close}? give one of ")):
        smc(toy_pair(), **{option: value})


def test_a_flag_or_an_axis_of_no_known_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "x", "--kernel", "blok"], commands=[]) == 2
    assert "--kernel = 'blok': did you mean block? choose from" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"intermediates = 'mixtur': did you mean mixture\? choose from"):
        Axes(intermediates=("mixtur",)).check_intermediates()


@pytest.mark.parametrize(("text", "words", "remedy"), [
    ("smc,proposal=chain,kernel=tree", "proposal = chain with kernel = tree: ", "kernel = rejection, or proposal = "),
    ("smc,lanes=2,proposal=chain,weight=balance", "proposal = chain with weight = balance: ", "give weight = own, or"),
    ("tree-walk,proposal=chain", "proposal = chain with kernel = TreeWalk: ", "or proposal = marginals"),
])
def test_parts_that_need_marginals_are_refused_with_a_chain_by_name(text: str, words: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        spelled(text).check()
    assert remedy in str(caught.value)
    assert "(" not in str(caught.value), "no object's repr"


@pytest.mark.parametrize("text", ["smc,w=0.3,smc,w=0.30", "smc,smc,particles=4", "smc,smc-4", "tree-128,tree-walk"])
def test_a_method_under_two_spellings_is_twice(text: str) -> None:
    with pytest.raises(ValueError, match="again; give at least one, and none twice"):
        spelled_list(text)
    with pytest.raises(ValueError, match="is run under a spelling before it; give at least one value, and none twice"):
        Axes(methods=tuple(dict.fromkeys(re.split(r",(?=[st])", text))))


def test_what_a_table_leaves_to_its_methods_is_no_second_spelling() -> None:
    assert len(spelled_list("smc,smc,window=32,smc,temperature=1,smc-8")) == 4
    assert len(Axes(methods=("smc", "smc,window=32"), windows=None).settings()) == 2


def test_a_study_runs_a_sampler_once_whatever_its_spelling() -> None:
    axes = Axes(methods=("smc", "smc,w=0.50,particles=2", "smc-2"), particles=(4, 8), w=(0.3, 0.5))
    assert [(each.method, each.particles, each.w) for each in axes.settings()] == [
        ("smc", 4, 0.3), ("smc", 4, 0.5), ("smc", 8, 0.3), ("smc", 8, 0.5), ("smc,w=0.50,particles=2", 2, 0.5),
        ("smc-2", 2, 0.3),
    ]


@pytest.mark.parametrize("text", ["", ",", "smc-4,smc-4"])
def test_a_list_has_methods_and_none_twice(text: str) -> None:
    with pytest.raises(ValueError, match="give at least one, and none twice"):
        spelled_list(text)


def test_shared_options_go_where_they_are_read() -> None:
    pair = toy_pair()
    shared = {"w": 0.6, "temperature": 0.7, "window": 2, "lookahead": LIMIT, "unheard_of": 1}
    assert spelled("smc").make(pair, **shared).intermediate.w == 0.6
    assert spelled("smc,w=0.4").make(pair, **shared).intermediate.w == 0.4
    assert spelled("smc,intermediate=mixture").make(pair, **shared).intermediate.w == 0.6
    for text in ("speculative", "smc,intermediate=chernoff", "smc,kernel=accept-all"):
        made = spelled(text).make(pair, **shared)
        assert (made.window, made.target.shaping.temperature) == (2, 0.7)
    with pytest.raises(ValueError, match=r"w = 0\.4 with intermediate = chernoff, which has none"):
        spelled("smc,intermediate=chernoff,w=0.4").make(pair)


def test_bad_values_are_refused_without_models() -> None:
    for text, words in {"smc,w=2": "w = 2", "smc,window=0": "window = 0", "smc,nodes=3": "nodes = 3"}.items():
        with pytest.raises(ValueError, match=words):
            spelled(text).check()


def test_every_method_says_what_it_is() -> None:
    for each in own():
        assert each.summary.endswith("."), each.name
        assert each.reference, each.name
        assert each.proper or each.why, each.name
        assert all(option.help for option in each.options), f"{each.name}: {[o for o in each.options if not o.help]}"
        for text in each.examples:
            assert spelled(text).method is each
        spelled(each.name).check()


def test_options_are_read_from_the_signature() -> None:
    def make(pair: object, *, tokens: int | None = 2, share: float = 0.5, kernel: object = None, phi: object = None,
             name: str = "") -> None:
        """One.

        Args:
            tokens, share: committed at once, of the window.
            kernel: how drafts
                become blocks.
        """

    found = read_options(make)
    assert [(o.name, o.type, o.default_text, o.help) for o in found[:2]] == [
        ("tokens", "none or int", "2", "committed at once"), ("share", "float", "0.5", "of the window"),
    ]
    assert (found[2].name, found[2].help) == ("kernel", "how drafts become blocks")
    assert len(found) == 3, "an object without a name cannot be written"
    assert argument_help("One.\n\nArgs:\n    a, b: of the target.\n") == {"a": "of the target", "b": "of the target"}


def test_a_method_is_registered_and_a_taken_name_refused(anew: None) -> None:
    @method("mine", role="baseline", targets="AR", proper=False, reference="here", why="a test", aliases=("m-<n>",))
    def mine(pair: object, *, n: int = 1) -> Any:
        """Mine."""
        made = spelled("smc").make(toy_pair())
        made.lanes = n
        return made

    made: Any = spelled("m-3").make(toy_pair())
    assert (made.lanes, made.name) == (3, "m-3")
    facts: dict[str, Any] = {"role": "exact", "targets": "AR", "proper": True, "reference": "here"}
    with pytest.raises(ValueError, match="method = 'mine' is the name of"):
        method("mine", **facts)(lambda pair: None)
    with pytest.raises(ValueError, match="does not say why"):
        method("other", **{**facts, "proper": False})
    with pytest.raises(ValueError, match="give a name of lower-case letters"):
        method("Other", **facts)


FACTS: dict[str, Any] = {"role": "exact", "targets": "AR", "proper": True, "reference": "here"}


@pytest.mark.parametrize(("name", "aliases", "words"), [
    ("smc-4", (), "method = 'smc-4' is a spelling of smc-<particles>, which means smc: give another"),
    ("other", ("paper",), "alias of other = 'paper' is a spelling of paper, which means paper: give another"),
    ("other", ("smc-<n>",), "alias of other = 'smc-<n>' is a spelling of smc-<particles>, which means smc"),
    ("other", ("dlm-1<n>",), "alias of other = 'dlm-1<n>' is a spelling of dlm-<tokens>, which means dlm"),
    ("other", ("o-<n>", "o-3"), "alias of other = 'o-3' is a spelling of o-<n>, which means other"),
    ("other", ("o-<zz>",), "alias = 'o-<zz>' of method other: zz is no option of other: it has n, on"),
    ("other", {"o-all": {"zz": 3}}, "alias = 'o-all' of method other: zz is no option of other"),
    ("other", ("o-<on>",), "alias = 'o-<on>' of method other: on = '1': give true or false"),
    ("other", {"o-<n>": {"n": 3}}, "alias = 'o-<n>' of method other says n twice"),
    ("other", ("bad(-<k>",), "alias = 'bad(-<k>': give lower-case letters, digits, hyphens, and options as <name>"),
    ("other", ("o-<n>x<n>",), "alias = 'o-<n>x<n>': give lower-case letters"),
])
def test_an_alias_that_could_not_be_used_is_refused_at_once(anew: None, name: str, aliases: Any, words: str) -> None:
    def make(pair: object, *, n: int = 1, on: bool = False) -> Any: ...

    with pytest.raises(ValueError, match=re.escape(words)):
        method(name, aliases=aliases, **FACTS)(make)
    assert name not in METHODS
    assert spelled("smc-4").options == {"particles": 4}


def plug_in(name: str, body: Callable[[Any], Any]) -> None:
    """Register a method of another package that makes what `body` does."""

    def make(pair: Any) -> Any:
        """Not of this package."""
        return body(pair)

    method(name, **FACTS)(make)


def test_what_a_plug_in_makes_is_a_decoder(anew: None, capsys: pytest.CaptureFixture[str]) -> None:
    class Fixed:
        __slots__ = ()
        name, stream, models = "fixed", None, ()
        open = step = finished = result = reseat = len

    for number, (made, words) in enumerate([
        (None, "None, which has no name, stream, models, open"), (3, "3, which has no name"),
        (Fixed, "which is a class: return a decoder"), (Fixed(), "whose name cannot be set: let name be an attribute"),
    ]):
        plug_in(f"none{number}", lambda pair, made=made: made)
        with pytest.raises(ValueError, match=rf"^method none{number} made .*{re.escape(words)}"):
            spelled(f"none{number}").make(toy_pair())
    assert main(["decode", "--pair", "arithmetic", "Ann has 3 apples.", "--method", "none0"], commands=[]) == 2
    assert "method none0 made None, which has no" in capsys.readouterr().err


def test_what_a_plug_in_raises_is_an_error_of_the_method(anew: None) -> None:
    def fails(pair: Any) -> Any:
        raise KeyError("a\nb")

    plug_in("fails", fails)
    with pytest.raises(ValueError, match=r"^method fails failed: KeyError: 'a\\nb'; repair or remove ") as found:
        spelled("fails").make(toy_pair())
    assert isinstance(found.value.__cause__, KeyError)


def test_an_argument_without_a_default_is_refused_at_once(anew: None) -> None:
    def needs(pair, model): ...  # type: ignore[no-untyped-def]

    with pytest.raises(ValueError, match=r"method other cannot be made of a pair alone \(missing a required "):
        method("other", **FACTS)(needs)


def test_a_plug_in_of_a_taken_spelling_is_unavailable_and_says_why(
    anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "plug_in_that_takes.py").write_text(
        "from smc_bridge.registry import method\n"
        "@method('takes', role='exact', targets='AR', proper=True, reference='here', aliases=('smc-<n>',))\n"
        "def takes(pair, *, n: int = 1): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry._load(EntryPoint("takes", "plug_in_that_takes", GROUP))
    assert "alias of takes = 'smc-<n>' is a spelling of smc-<particles>" in unavailable()["takes"]


@pytest.mark.parametrize(("one", "other", "both"), [
    ("a-<n>", "a-4", True), ("a-<n>", "a-0", False), ("a-<n>", "a-<m>x<k>", False), ("a<n>", "a1<m>", True),
    ("a<n><m>", "a<k>", True), ("a<n><m>", "a7", False), ("a-<n>", "b-<n>", False), ("a", "a", True),
])
def test_two_patterns_clash_if_a_text_meets_both(one: str, other: str, both: bool) -> None:
    assert clash(one, other) is clash(other, one) is both


def test_a_broken_plug_in_is_listed_and_breaks_nothing(
    anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plug_in_that_raises.py").write_text(
        "from smc_bridge.registry import method\n"
        "@method('half', role='exact', targets='AR', proper=True, reference='here')\n"
        "def half(pair): ...\n"
        "raise RuntimeError('no luck\\ntoday')\n"
    )
    (tmp_path / "plug_in_without_a_method.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("plug_in_that_raises", "plug_in_without_a_method", "plug_in_that_is_not_there"):
        registry._load(EntryPoint(name.removeprefix("plug_in_that_"), name, GROUP))
    assert "half" not in METHODS
    assert unavailable()["raises"] == "RuntimeError: no luck today"
    assert "registers no method" in unavailable()["plug_in_without_a_method"]
    assert "ModuleNotFoundError" in unavailable()["is_not_there"]
    assert spelled("smc-4").options == {"particles": 4}
    with pytest.raises(ValueError, match="method = 'raises' is unavailable: RuntimeError: no luck today"):
        spelled("raises")
    assert main(["methods"], commands=[]) == 0
    assert "raises is unavailable: RuntimeError: no luck today" in capsys.readouterr().out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Standard output of a command line that succeeds."""

    def call(*argv: str) -> str:
        code = main([*argv], commands=[])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return call


def test_methods_are_listed_and_explained(run: Callable[..., str]) -> None:
    listed = run("methods")
    data = json.loads(run("methods", "--json"))
    assert [each["name"] for each in data["methods"]] == list(METHODS)
    for each in METHODS.values():
        for words in (each.name, each.role, each.targets):
            assert words in listed
        explained = run("methods", each.name)
        assert all(option.name in explained for option in each.options)
        if each in own():
            inside = re.findall(r"smc_bridge|\boptions go\b|Sampler|tree_kernel|an object", explained.replace("`", ""))
            assert not inside, f"{each.name} is explained in the words of the library: {inside}"
        found = json.loads(run("methods", each.name, "--json"))
        assert [option["name"] for option in found["options"]] == [option.name for option in each.options]
        assert run("methods", each.name, "--markdown").startswith(f"## {each.name}\n")
    assert run("methods", "--markdown") == f"{table(METHODS.values())}\n"


def test_an_explanation_keeps_its_paragraphs(run: Callable[..., str]) -> None:
    paragraphs = inspect.cleandoc(METHODS["adjust"].make.__doc__ or "").partition("\n\nArgs:")[0].split("\n\n")
    assert len(paragraphs) > 2
    told = [" ".join(each.split()) for each in run("methods", "adjust").split("\n\n")]
    assert told[0] == f"adjust: {' '.join(paragraphs[0].split())}"
    assert told[1 : len(paragraphs)] == [" ".join(each.split()) for each in paragraphs[1:]]


def test_a_quoted_figure_says_whose_forwards_it_counts(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    head = "| method | accuracy, % | tokens / DLM forward | KL bound, nats / token |\n| --- | --- | --- | --- |\n"
    page.write_text(f"{head}| `a` | 9.0 | 0.99 (drafter) | 0 |\n| `b` | 8.0 | 2.00 | other law |\n")
    assert read_figures(page) == {
        "a": "9.0 % right, 0.99 tokens / forward of its drafter, 0 nats / token from the AR law",
        "b": "8.0 % right, 2.00 tokens / DLM forward",
    }


def test_the_page_of_the_methods_is_the_commands() -> None:
    text = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    figures = read_figures(ROOT / "docs" / "benchmarks" / "field.md")
    assert text == f"{page(own(), figures)}\n", (
        "run `smc-bridge methods --markdown --full --figures docs/benchmarks/field.md > docs/methods/index.md`"
    )
