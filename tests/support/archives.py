"""Extracts archives with every Python that Causeway supports."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path


def extract(archive: Path, to: Path, prefix: str = "") -> None:
    """Extract the members of a tar archive whose names, below its top directory, start with ``prefix``.

    Python before 3.11.4 does not know filters. The archives are built here, or come from the package index.
    """
    with tarfile.open(archive) as tar:
        members: Iterable[tarfile.TarInfo] = [each for each in tar if each.name.partition("/")[2].startswith(prefix)]
        if hasattr(tarfile, "data_filter"):
            tar.extractall(to, members, filter="data")
        else:
            tar.extractall(to, members)  # see above
