"""Prints docs/pictures/page_*.png anew: python tests/page/screenshots.py RUN."""

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from browser import Visit, chromium, serving  # noqa: E402
from PIL import Image  # noqa: E402

PICTURES = TESTS.parent / "docs/pictures"
COLOURS = 64  # of the palette: a third of the bytes, and nothing is lost to the eye
LARGEST = 150_000  # bytes of a picture


def keep(visit: Visit, name: str) -> None:
    """Write what the window shows now, as a small picture."""
    path = PICTURES / f"page_{name}.png"
    visit.page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    size = path.stat().st_size
    assert size < LARGEST, f"{path}: {size:,} bytes"
    print(f"{path}: {size:,} bytes")


def show_report(visit: Visit, tab: str, heading: str) -> None:
    """Open a tab and bring a heading of its report to the top of the window."""
    visit.page.get_by_role("tab", name=tab).click()
    frame = visit.page.frame_locator(f"iframe[title={tab}]")
    title = frame.get_by_role("heading", name=heading, exact=True)
    title.wait_for()
    visit.page.wait_for_timeout(2000)
    title.evaluate("heading => heading.scrollIntoView()")
    visit.page.wait_for_timeout(1000)


def main(run: Path) -> None:
    """Take a picture of each tab that the documentation shows."""
    PICTURES.mkdir(exist_ok=True)
    with serving(run) as address, chromium() as visit:
        visit.page.goto(address)
        visit.page.get_by_text("Retrieval alone").wait_for()
        visit.settle()
        visit.page.wait_for_timeout(2000)
        keep(visit, "ads")
        why = visit.page.get_by_role("heading", name="Why is it there?")
        why.evaluate("heading => heading.scrollIntoView()")
        visit.page.wait_for_timeout(2000)
        keep(visit, "why")
        show_report(visit, "Quality", "Funnel")
        keep(visit, "quality")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    main(parser.parse_args().run)
