"""A link between replicas that can be cut without being root: a relay in front of each replica.

Peers reach a replica at the relay's port (``SOCKET_ADDRESS``), the replica listens at another (``KV_BIND``). While the
link is cut, connections are taken and nothing is passed on, in either direction: silence, as of a network that drops
packets. What was under way arrives after the healing, as TCP would send it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final, Self

_PIECE_BYTES: Final = 65536


class Relay:
    """Passes connections from ``front`` on to ``back``, both ports of 127.0.0.1. Runs in a thread of its own."""

    def __init__(self, front: int, back: int) -> None:
        self._front, self._back = front, back
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._listening = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"relay {front}", daemon=True)

    def __enter__(self) -> Self:
        """Listen. Raises ``OSError`` where the port is taken."""
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End it, and all connections."""
        with contextlib.suppress(RuntimeError):  # The loop is closed already: it never listened.
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """Pass nothing on any more."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def heal(self) -> None:
        """Pass on again, first what has been held."""
        self._loop.call_soon_threadsafe(self._passing.set)

    def _run(self) -> None:
        loop = self._loop
        try:
            server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self._front))
        except OSError as exc:
            self._failure = exc
        else:
            self._listening.set()
            loop.run_forever()
            server.close()
            loop.run_until_complete(self._cancel_all())
        finally:
            loop.close()
            self._listening.set()

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # The way there is cut for a new connection as well.
            await self._passing.wait()
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._back)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, back_writer), self._pump(back_reader, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Pass on what comes, until one side ends."""
        try:
            while data := await source.read(_PIECE_BYTES):
                await self._passing.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # A side that broke off is a side that ended.
        finally:
            sink.close()
