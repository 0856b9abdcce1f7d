"""What the folder of a run already holds about its quality, its data, its training."""

import json
from pathlib import Path
from typing import Any

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.pipeline.html_report import html_page
from torchrec_adrec.pipeline.report import DATA_REPORT, REPORT
from torchrec_adrec.pipeline.stage_tables import TRAINING
from torchrec_adrec.runs.stages import (
    EXPORT,
    INDEX,
    RANKING,
    RETRIEVAL,
    check_inputs,
    load_record,
)
from torchrec_adrec.runtime.markdown import code, literal

KINDS, KINDS_PICTURE = "index_kinds.json", "index_kinds.png"
RUN_LOG = "run.log"
WARNINGS = 30  # the latest ones of the log


def check_run(run: Path) -> dict[str, str]:
    """Refuse a run that cannot be served, before anything is loaded.

    Returns:
        Build of each stage that serving reads.

    Raises:
        ConfigError: there is no such run.
        ManifestError: a stage is missing, damaged, or of other inputs.
    """
    if not run.is_dir():
        raise ConfigError(f"--out {run}: no such run; `adrec run --out {run}` makes it")
    stages = (RETRIEVAL, EXPORT, INDEX, RANKING)
    for stage in stages:
        check_inputs(stage, run)
    return {stage.name: load_record(run, stage.name).build_id for stage in stages}


def quality(run: Path) -> str:
    """Return an HTML page on the quality of a run, the kinds of index among it."""
    sections = _sections(run)
    sections.pop(TRAINING, None)
    return _page(run, {REPORT: "".join(sections.values()) + _kinds(run)})


def data(run: Path) -> str:
    """Return an HTML page of the data report."""
    return _page(run, {DATA_REPORT: _text(run, DATA_REPORT, "adrec prepare")})


def training(run: Path) -> str:
    """Return an HTML page on the training, with the warnings of the run's log."""
    section = _sections(run).get(TRAINING)
    if section is None:
        section = f"## {TRAINING}\n\n{REPORT} has no such section: run `adrec run`.\n\n"
    return _page(run, {REPORT: section + _warnings(run)})


def _page(run: Path, reports: dict[str, str]) -> str:
    return html_page(run, reports, run.resolve().name)


def _text(run: Path, path: str, command: str) -> str:
    file = run / path
    if not file.is_file():
        return f"There is no {path}: `{command} --out {run}` writes it.\n\n"
    return file.read_text()


def _sections(run: Path) -> dict[str, str]:
    """Divide the report at its headings of the second level; "" is what is before."""
    head, *rest = ("\n" + _text(run, REPORT, "adrec run")).split("\n## ")
    sections = {"": head + "\n\n"}
    for section in rest:
        sections[section.partition("\n")[0]] = f"## {section}\n\n"
    return sections


def _kinds(run: Path) -> str:
    """Return a section on the kinds of index: their recall, time and bytes."""
    title = "## Kinds of index\n\n"
    if not (run / KINDS).is_file():
        how = f"`adrec index compare --out {run}`"
        return f"{title}{how} measures every kind on these vectors and shows it here.\n"
    compared = json.loads((run / KINDS).read_text())
    lines = [f"{compared['title']}:", "", f"![kinds of index]({KINDS_PICTURE})", ""]
    lines += [
        "| kind | recall | ms a query, median | bytes an ad |",
        "|---|---|---|---|",
    ]
    lines += [_kind(row) for row in compared["kinds"]]
    return title + "\n".join(lines) + "\n"


def _kind(row: dict[str, Any]) -> str:
    if row["refusal"]:
        return f"| {row['kind']} | refused: {literal(row['refusal'])} | | |"
    figures = f"{row['recall']:.4f} | {row['milliseconds']['p50']:.3f}"
    return f"| {row['kind']} | {figures} | {row['bytes_per_ad']:.0f} |"


def _warnings(run: Path) -> str:
    """Return the last warnings of the run's log, each once."""
    title = "## Warnings\n\n"
    if not (run / RUN_LOG).is_file():
        return f"{title}There is no {RUN_LOG}.\n"
    lines = (run / RUN_LOG).read_text(errors="replace").splitlines()
    texts = [line.partition(" | ")[2] for line in lines if " WARNING " in line]
    kept = list(dict.fromkeys(text for text in texts if text))[-WARNINGS:]
    if not kept:
        return f"{title}None in {RUN_LOG}.\n"
    return title + "\n".join(f"- {code(text)}" for text in kept) + "\n"
