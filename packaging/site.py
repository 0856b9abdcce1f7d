"""A hook of MkDocs: puts the site's pages together from the repository (`make docs`).

The pages stay where they are and as GitHub shows them. Here they are copied, pages that
lie elsewhere come along, and three are made: the commands from the command line itself,
the Python interface from its docstrings, and the notebook as a page.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build/docs"
# Files with a page of another name. docs/index.md is about the index of ads, and would
# be taken for the first page of the site.
NAMES = {
    "docs/README.md": "index.md",
    "docs/index.md": "ads_index.md",
    "docs/tutorial.ipynb": "tutorial.md",
    "launch/README.md": "launch.md",
    "benchmarks/LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
PYTHON = """# Python

What a program of your own imports. Everything else may change without notice.

::: torchrec_adrec.serve.recommender.Recommender

::: torchrec_adrec.serve.recommendation

::: torchrec_adrec.config.run.load_config

::: torchrec_adrec.config.run.Config

::: torchrec_adrec.schema.data_schema.Schema
"""


def on_config(config: Any) -> Any:
    """Build from the pages that are put together here."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for source in sources():
        page = PAGES / page_of(source)
        text = (ROOT / source).read_text()
        text = notebook(text) if source.endswith(".ipynb") else text
        page.write_text(with_links_of_the_site(text, source))
    (PAGES / "commands.md").write_text(commands())
    (PAGES / "python.md").write_text(PYTHON)
    config.docs_dir = str(PAGES)
    return config


def sources() -> list[str]:
    """Name the files that become pages, from the repository's root."""
    docs = [
        str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))
    ]
    return list(dict.fromkeys([*docs, *NAMES]))


def page_of(source: str) -> str:
    """Return the page that a file becomes."""
    return NAMES.get(source, Path(source).name)


def with_links_of_the_site(text: str, source: str) -> str:
    """Point links at pages; what has none is named instead."""
    known = set(sources())

    def replace(link: re.Match[str]) -> str:
        title, path, fragment = link[1], link[2], link[3] or ""
        target = os.path.normpath(Path(source).parent / path)
        if target in known:
            return f"[{title}]({page_of(target)}{fragment})"
        name = title.strip("`")
        return f"`{name}`"

    return re.sub(r"\[([^\]]+)\]\((?!http|#)([^)#\s]+)(#[^)\s]*)?\)", replace, text)


def notebook(text: str) -> str:
    """Return a notebook as a page: its text, and its code without the output."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Describe all commands as the command line does."""
    args = ["torchrec_adrec.cli.app", "utils", "docs", "--name", "adrec"]
    done = subprocess.run(
        [sys.executable, "-m", "typer", *args, "--title", "Commands"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    text = re.sub(r"^## `adrec job`\n.*?(?=^## )", "", done.stdout, flags=re.M | re.S)
    # The examples of a docstring are indented lines.
    return re.sub(r"((?:^ {2,}\S.*\n)+)", r"\n```bash\n\1```\n\n", text, flags=re.M)
