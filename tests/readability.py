"""How the code reads, in counts: python tests/readability.py [ROOT ...]

Give two checkouts to see them side by side, as before and after a change.
"""

import argparse
import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Words that say nothing of the thing that they name.
BANNED = {
    *("at", "beside", "found", "here", "lacking", "made", "much", "own", "seen"),
    *("stuff", "taken", "there", "told", "tmp", "wanted", "what", "which"),
}
FRAGMENTS = {
    *("And", "As", "At", "But", "By", "For", "From", "In", "Of", "On", "Or", "So"),
    *("Then", "To", "With", "Without"),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Arguments and variables that a file binds, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def used_names(tree: ast.AST) -> Iterator[str]:
    """Every appearance of a variable, bound or read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def starts_mid_sentence(tree: ast.AST) -> Iterator[str]:
    """Docstrings that begin with a small letter or with a word like `Of`."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and (text[0].islower() or text.split()[0] in FRAGMENTS):
            yield text.splitlines()[0]


def comment_lines(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def takes_config(tree: ast.AST) -> int:
    """Functions with a parameter of the type `Config`."""
    return sum(
        any(
            isinstance(arg.annotation, ast.Name) and arg.annotation.id == "Config"
            for arg in (*node.args.args, *node.args.kwonlyargs)
        )
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ) + sum(
        isinstance(node.annotation, ast.Name) and node.annotation.id == "Config"
        for top in ast.walk(tree)
        if isinstance(top, ast.ClassDef)
        for node in top.body
        if isinstance(node, ast.AnnAssign)
    )


def counts(root: Path) -> dict[str, str]:
    """Figures of the package below a checkout."""
    words: Counter[str] = Counter()
    lines = comments = mid_sentence = docstrings = config = long = silent = 0
    for path in (root / "torchrec_adrec").rglob("*.py"):
        source = path.read_text()
        tree = ast.parse(source)
        words.update(name for name in used_names(tree) if name in BANNED)
        code = sum(1 for line in source.splitlines() if line.strip())
        remarks = comment_lines(source)
        lines, comments = lines + code, comments + remarks
        silent += code > 40 and not remarks
        long += source.count("\n") > 300
        mid_sentence += len(list(starts_mid_sentence(tree)))
        docstrings += source.count('"""') // 2
        config += takes_config(tree)
    return {
        "names that say nothing": f"{words.total()} ({_first(words)})",
        "comments a hundred lines": f"{100 * comments / lines:.1f}",
        "files over 40 lines without a comment": str(silent),
        "docstrings that begin mid-sentence": f"{mid_sentence} of {docstrings}",
        "signatures and fields that take the whole Config": str(config),
        "files over 300 lines": str(long),
    }


def _first(words: Counter[str]) -> str:
    return ", ".join(f"{word} {count}" for word, count in words.most_common(4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", nargs="*", type=Path, default=[Path()])
    tables = [counts(root) for root in parser.parse_args().roots]
    for row in tables[0]:
        print(f"{row:50}", *(f"{table[row]:44}" for table in tables))
