"""Secrets from files: ``KV_X_FILE`` names a file with the value of ``KV_X``, for every setting that is a secret.

The environment of a process can be read in ``/proc`` and shown by container tools; a file has its own permissions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

FILE_SUFFIX: Final = "_FILE"

MAX_FILE_BYTES: Final = 1024 * 1024
"""Limit of a file's size: room for thousands of tokens. A wrong path must not be read into memory whole."""


def read_secret(environ: Mapping[str, str], variable: str) -> tuple[str, str | None]:
    """Return the variable that ``environ`` sets, ``variable`` or ``variable`` with ``_FILE``, and the secret.

    The secret is None if neither is set. One line end at the end of a file does not belong to it. Raises ``ValueError``
    with one line that starts with the variable and shows no secret.
    """
    by_file = variable + FILE_SUFFIX
    path = environ.get(by_file)
    if path is None:
        return variable, environ.get(variable)
    if not path.strip():
        raise ValueError(f"{by_file}: is set but empty; unset it to run without")
    if variable in environ:
        raise ValueError(f"{by_file}: {variable} is set as well; unset one of the two")
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ValueError(f"{by_file}: cannot read {path!r}: {getattr(exc, 'strerror', None) or exc}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{by_file}: {path!r} is larger than {MAX_FILE_BYTES} bytes")
    # As os.environ does: bytes that are no UTF-8 become surrogates, which the parser of the secret rejects.
    text = content.decode("utf-8", "surrogateescape")
    return by_file, text.removesuffix("\n").removesuffix("\r")
