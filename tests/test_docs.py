"""The documentation is true to the code: its links, files, commands and settings exist.

A page is README.md, one below docs/, or launch/README.md. Commands in its blocks are
parsed as the command line parses them, without being run.
"""

import importlib.util
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from conftest import REPOSITORY, module_at
from pydantic import BaseModel

from torchrec_adrec.cli.app import app
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.schema import Schema

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "launch/README.md",
]
TOPS = ("torchrec_adrec", "benchmarks", "tests", "launch", "configs")
ROOTS = (REPOSITORY, REPOSITORY / "torchrec_adrec")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def code_spans(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The arguments of every command in the page's blocks that runs this program."""
    for line in "\n".join(blocks(page, "bash")).splitlines():
        if line.startswith(f"{program} "):
            yield shlex.split(line, comments=True)[1:]


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text()):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: no file {link}"
        if fragment:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name}: no heading {link}"


@cache
def sources() -> dict[str, str]:
    """Text of every file of the code and its configurations, by name."""
    files = (path for top in TOPS for path in (REPOSITORY / top).rglob("*.*"))
    kinds = (".py", ".yaml", ".json")
    texts: dict[str, str] = {"setup.py": (REPOSITORY / "setup.py").read_text()}
    for path in files:
        if path.suffix in kinds and path != Path(__file__):
            texts[path.name] = texts.get(path.name, "") + path.read_text()
    return texts


def test_files_that_are_named_exist(page: Path) -> None:
    """`data/keys.py` below the root or the package; `keys.py` alone anywhere."""
    named = r"[\w./-]+\.py\b|\b(?:configs|benchmarks/results)/[\w./]*\w"
    for span in code_spans(page):
        for path in re.findall(named, span):
            exists = any((root / path).exists() for root in ROOTS)
            assert exists or path in sources(), f"{page.name}: no file {path}"


def test_rooms_that_are_named_exist() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    for cell in re.findall(r"^\| (`[^|]*)", text, re.MULTILINE):
        for room in re.findall(r"`([\w/]+)/`", cell):
            assert any((root / room).is_dir() for root in ROOTS), f"no room {room}"


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The `adrec` command that is named, and the words that are left for it."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        default = getattr(command, "default", None)
        if default is not None and not {*words[:1]} & {*command.commands}:
            words = [default, *words]  # `adrec index` is `adrec index build`
        assert words and words[0] in command.commands, f"no command adrec {words}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_settings(config: str | Path | None, overrides: list[str]) -> None:
    """Overrides are settings, on top of the named configuration where it exists."""
    path = REPOSITORY / config if config else None
    load_config(path if path is not None and path.exists() else None, overrides)


def test_adrec_commands_parse(page: Path) -> None:
    for words in commands(page, "adrec"):
        command, left = find_command(words)
        params = command.make_context(" ".join(words), left).params
        law = [f"data.synthetic.{word}" for word in params.get("law") or []]
        check_settings(params.get("config"), [*(params.get("overrides") or []), *law])
        if params.get("schema") is not None:
            Schema.load(REPOSITORY / params["schema"])


def test_adrec_commands_in_the_text_exist(page: Path) -> None:
    """They are mentioned, as `adrec run`, without all that they need."""
    for span in code_spans(page):
        words = [word for word in span.split() if word != "..."]
        if words[0] == "adrec" and len(words) > 1:
            command, left = find_command(words[1:])
            known = {option for param in command.params for option in param.opts}
            options = {word for word in left if word.startswith("--")}
            assert options <= known, f"{page.name}: {span}"


def test_torchx_commands_are_signatures_of_components(page: Path) -> None:
    """`torchx run OPTIONS adrec.NAME ARGUMENTS -- SETTINGS`."""
    for words in commands(page, "torchx"):
        (name,) = (word for word in words if word.startswith("adrec."))
        left = words[words.index(name) + 1 :]
        cut = left.index("--") if "--" in left else len(left)
        arguments, overrides = left[:cut], left[cut + 1 :]
        component = getattr(
            module_at("launch/components.py"), name.removeprefix("adrec.")
        )
        if arguments == ["--help"]:
            continue
        options = [word.lstrip("-") for word in arguments[::2]]
        values = dict(zip(options, arguments[1::2], strict=True))
        inspect.signature(component).bind(*overrides, **values)
        check_settings(values.get("config"), overrides)


def test_scripts_and_make_targets_exist(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    spans = [words for span in code_spans(page) if len(words := span.split()) > 1]
    make = [words[1:] for words in spans if words[0] == "make"]
    for target, *_ in [*make, *commands(page, "make")]:
        assert target in targets, f"{page.name}: no target {target}"
    scripts = [words[1:] for words in spans if words[0] == "python"]
    for script, *left in [*scripts, *commands(page, "python")]:
        if script.endswith(".py"):
            text = (REPOSITORY / script).read_text()
            for option in (word for word in left if word.startswith("--")):
                assert f'"{option}"' in text, f"{page.name}: {script} has no {option}"


def test_yaml_is_a_configuration(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        assert set(yaml.safe_load(text)) <= {*Config.model_fields, "extends"}
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        load_config(path)


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, also where it may be None."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def test_settings_that_are_named_exist(page: Path) -> None:
    """`train.batch_size`, also with a value, as `sharding.qcomm=fp16`."""
    sections = "|".join(Config.model_fields)
    for span in code_spans(page):
        match = re.match(rf"((?:{sections})(?:\.\w+)+)(?=$|[=: ])", span)
        if match is None or match[1].endswith((".md", ".py", ".yaml")):
            continue
        group: type[BaseModel] | None = Config
        for key in match[1].split("."):
            fields = {} if group is None else group.model_fields
            assert key in fields, f"{page.name}: no setting {span}"
            group = settings_in(fields[key].annotation)


def test_python_imports_what_exists(page: Path) -> None:
    """Looked up in the text, as importing torchrec takes seconds."""
    for text in blocks(page, "python"):
        for module, names in re.findall(r"from (torchrec_adrec\S*) import (.*)", text):
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None
            for name in names.split(", "):
                assert re.search(rf"\b{name}\b", Path(spec.origin).read_text()), name


def test_names_of_the_code_are_those_of_the_code(page: Path) -> None:
    """A class, function or key that was renamed is renamed in the documentation."""
    text = "\n".join(sources().values())
    for span in code_spans(page):
        name = re.match(r"\w+", span)
        if name and re.fullmatch(r"[\w.]+(\(.*\))?", span):
            is_name = re.search(r"[a-z]_[a-z]|[a-z][A-Z]", name[0])
            known = re.search(rf"\b{name[0]}\b", text)
            assert known or not is_name, f"{page.name}: no {span} in the code"


def leaves(value: Any) -> Iterator[float]:
    """The numbers of a result, but for single runs."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in ("runs", "seconds"):
                yield from leaves(part)
    elif isinstance(value, int | float):
        yield float(value)


def test_results_of_the_readme_are_those_that_were_measured() -> None:
    """Figures with four decimals, and speeds in thousands."""
    results = (REPOSITORY / "benchmarks/results").glob("*.json")
    measured = [x for path in results for x in leaves(json.loads(path.read_text()))]
    text = (REPOSITORY / "README.md").read_text()
    section = text.partition("## Results")[2].partition("\n## ")[0]
    quality = {f"{x:.4f}" for x in measured}
    speeds = {f"{x:,.0f}" for x in (round(x, -3) for x in measured)}
    for figure in re.findall(r"\d\.\d{4}\b", section):
        assert figure in quality, f"no measurement has {figure}"
    for figure in re.findall(r"\b[\d,]+,000\b", section):
        assert figure in speeds, f"no measurement has {figure}"
