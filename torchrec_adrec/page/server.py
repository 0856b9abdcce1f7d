"""Starts Streamlit with the page of a run, so that nothing leaves this machine."""

from pathlib import Path

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.page.reports import check_run

APP = Path(__file__).with_name("app.py")


def serve(run: Path, host: str, port: int) -> None:
    """Check the run, then show its page until it is stopped.

    Args:
        run: its folder.
        host: address to listen on.
        port: TCP port.

    Raises:
        ConfigError: there is no such run, or Streamlit is not installed.
        ManifestError: a stage is missing, damaged, or of other inputs.
    """
    check_run(run)
    try:
        from streamlit.web import cli
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'torchrec-adrec[page]'") from None
    cli.main([*arguments(run, host, port)], prog_name="adrec page")


def arguments(run: Path, host: str, port: int) -> list[str]:
    """Return the command line of Streamlit.

    Args:
        run, host, port: as of `serve`.
    """
    settings = {
        "server.address": host,
        "server.port": port,
        # Otherwise it opens a browser, and asks for an e-mail address first.
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
        # It takes an installation outside of `site-packages` for its own checkout.
        "global.developmentMode": "false",
        "server.fileWatcherType": "none",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        # They would send an error's text to a search engine and to a chat service.
        "client.showErrorLinks": "false",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return ["run", str(APP), *options, "--", str(run)]
