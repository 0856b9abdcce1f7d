"""`adrec settings` says which settings there are."""

import typer


def settings() -> None:
    """Print every setting with its values, its default and its meaning, as Markdown.

    \b
      adrec settings | grep batch_size
    """
    from torchrec_adrec.config.reference import reference

    typer.echo(reference(), nl=False)
