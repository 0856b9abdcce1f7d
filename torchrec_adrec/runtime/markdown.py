"""Text of the data in a Markdown report: it stays the text that it is."""

import re

# `_` has a meaning only at the edge of a word, so that most names stay as they are.
ACTIVE = re.compile(r"[\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_])")


def literal(value: object) -> str:
    r"""Write a value so that Markdown shows its characters and reads none of them.

    >>> literal("a|b <script> C14_x")
    'a\\|b \\<script\\> C14_x'
    """
    return ACTIVE.sub(r"\\\g<0>", " ".join(str(value).split()))


def code(line: str) -> str:
    """Write a line of text as code, also one that holds backticks.

    >>> code("a `b`")
    '`` a `b` ``'
    """
    longest = max((len(ticks) for ticks in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}"
