"""`adrec run --demo`: settings of the package, and what to do afterwards."""

from pathlib import Path

# A link in a checkout, a folder in an installed package (setup.py).
CONFIG = Path(__file__).parents[1] / "configs/synthetic_demo.yaml"
OUT = Path("runs/demo")


def next_steps(run: Path) -> str:
    """Say what can be done with the finished demo."""
    return f"""
What to do next:
  read the figures and pictures:  {run / "report.html"}
  ten ads for another user:       adrec recommend --out {run}
  answer requests over HTTP:      adrec serve --out {run}
  the same with another ranker:   adrec run --out {run} ranking.layers=3
  your own table:                 adrec init clicks.csv --try"""
