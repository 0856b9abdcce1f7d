"""Opens the folder of a run or of a bundle, which may be a tar file of one."""

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_adrec.errors import ConfigError, ManifestError, reason

BUNDLE = "manifest.json"  # in a bundle's folder: what every other file must be
TAR = ".tar"
AGAIN = "copy the bundle again, or make it again with `adrec bundle`"


def check_no_bundle(run: Path) -> None:
    """Refuse to work in a bundle.

    Raises:
        ConfigError: the folder is one.
    """
    if (run / BUNDLE).exists():
        raise ConfigError(
            f"{run} is a bundle, in which nothing may change; work in its run, then"
            " pack it again"
        )


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the folder of a run or of a bundle; that of a tar file lasts as long.

    Raises:
        ManifestError: the file is no tar file of a bundle, or was cut short.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="adrec-bundle-") as name:
        folder = Path(name)
        try:
            with tarfile.open(path, "r:") as tar:
                tar.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise ManifestError(f"{path}: {reason(error)}; {AGAIN}") from None
        if not (folder / BUNDLE).is_file():
            raise ManifestError(f"{path} holds no {BUNDLE}, so it is no bundle")
        yield folder
