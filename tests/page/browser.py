"""The page of a run in a real Chromium, with all that it asks for and complains of."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from conftest import REPOSITORY

LOCAL = ("127.0.0.1", "localhost")
WAIT_MS = 400_000  # for what takes seconds on a quiet machine


@dataclass
class Visit:
    """A page in Chromium.

    Attributes:
        page: of playwright.
        foreign: addresses of other hosts that it asked for.
        errors: what it wrote to the console as an error, and errors of its scripts.
    """

    page: Any
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("websocket", lambda socket: self._note(socket.url))
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        is_remote = parts.scheme in ("http", "https", "ws", "wss")
        if is_remote and parts.hostname not in LOCAL:
            self.foreign.append(url)

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def ads(self, number: int = 0) -> list[list[str]]:
        """Read the rows of a table of ads, as a screen reader does."""
        table = self.page.locator("[data-testid=stDataFrame]").nth(number)
        rows = table.locator("table tbody tr")
        rows.first.wait_for(state="attached")
        return [row.locator("td").all_inner_texts() for row in rows.all()]

    def settle(self) -> None:
        """Wait until Streamlit has run the page."""
        self.page.locator(
            "[data-testid=stApp][data-test-script-state=notRunning]"
        ).wait_for()


@contextmanager
def chromium(dark: bool = False) -> Iterator[Visit]:
    """Open a window of the installed Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        # As root, which a container often is, Chromium starts without its sandbox only.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        scheme = "dark" if dark else "light"
        size = {"width": 1280, "height": 900}
        yield Visit(browser.new_page(viewport=size, color_scheme=scheme))
        browser.close()


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """Serve a run's page as `adrec page` does; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torchrec_adrec", "page", "--out", str(run)]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=REPOSITORY)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(address):
            assert process.poll() is None, f"ended with {process.returncode}"
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/_stcore/health") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
