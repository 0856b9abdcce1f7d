"""A look at a file of unknown columns, and the configuration that it suggests.

One file a question: how its text is laid out (`text_layout`), what a column holds
(`forms`, `lists`, `times`), what it is for (`words`, `labels`, `ids`, `sides`,
`evidence`), what has to be rewritten (`repairs`), and the YAML (`proposal`).
"""
