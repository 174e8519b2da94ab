"""The keys with a prefix, as a ``MutableMapping``."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from .results import Json

if TYPE_CHECKING:
    from .session import Session


class MappingView(MutableMapping[str, Json]):
    """Made by ``Session.mapping``."""

    def __init__(self, session: Session, prefix: str) -> None:
        self._session = session
        self._prefix = prefix

    def __getitem__(self, key: str) -> Json:
        read = self._session.get(self._prefix + key)
        if not read.found:
            raise KeyError(key)
        return read.value

    def __setitem__(self, key: str, value: Json) -> None:
        self._session.put(self._prefix + key, value)

    def __delitem__(self, key: str) -> None:
        if not self._session.delete(self._prefix + key).deleted:
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._prefix + key) and self._session.get(self._prefix + key).found

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        for page in self._session.pages(prefix=self._prefix):
            for key in page.keys:
                yield key[start:]

    def __len__(self) -> int:
        return self._session.list(prefix=self._prefix, limit=1, count=True).count or 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._prefix!r})"
