"""How a cache stores Python values.

JSON: other clients of the cluster can read the values, and nothing that they write can run code here. Tuples come back
as lists, keys of dicts as strings, and what JSON cannot express raises ``TypeError`` or ``ValueError``. ``bytes`` are
stored as they are.

Pickle: every value that ``pickle`` takes. **Every client that may write to the cluster can then run code in this
process.** Whole numbers are stored as numbers, so that they can be counters.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any, Final, Protocol

from django.core.exceptions import ImproperlyConfigured


class PickleWarning(RuntimeWarning):
    """A cache uses pickle."""


class Codec(Protocol):
    """Turns values of the cache into values of the store, and back."""

    def encode(self, value: Any) -> Any:
        """Return what to store."""

    def decode(self, stored: Any) -> Any:
        """Return the value."""


class JsonCodec:
    """Values that JSON has, and bytes."""

    def encode(self, value: Any) -> Any:
        """Return ``value``: the client encodes it."""
        return value

    def decode(self, stored: Any) -> Any:
        """Return ``stored``: the client has decoded it."""
        return stored


class PickleCodec:
    """Any value."""

    def __init__(self) -> None:
        warnings.warn(
            "a Causeway cache with the serializer pickle runs code that it reads: every client that may write to the "
            "cluster can run code in this process",
            PickleWarning,
            stacklevel=2,
        )

    def encode(self, value: Any) -> Any:
        """Return a whole number as it is, and everything else pickled."""
        return value if type(value) is int and -(2**63) <= value < 2**63 else pickle.dumps(value)

    def decode(self, stored: Any) -> Any:
        """Return the value."""
        return pickle.loads(stored) if isinstance(stored, bytes) else stored  # noqa: S301  # by choice


CODECS: Final[dict[str, type[Codec]]] = {"json": JsonCodec, "pickle": PickleCodec}


def codec(name: str) -> Codec:
    """Return a new codec. Raises ``ImproperlyConfigured`` if there is none with this name."""
    if name not in CODECS:
        raise ImproperlyConfigured(f"serializer of a Causeway cache: must be one of {', '.join(CODECS)}, not {name!r}")
    return CODECS[name]()
