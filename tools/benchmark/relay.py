"""A relay in front of a replica: a link that can be cut without root privileges.

Peers connect to the relay's port (the replica's ``SOCKET_ADDRESS``); the replica listens on another port (``KV_BIND``).
While the link is cut, the relay accepts connections and forwards nothing in either direction, like a network that drops
packets. Data in flight arrives after the link heals, as TCP would retransmit it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, Self

_CHUNK_BYTES: Final = 65536


class Relay:
    """Forwards connections from port ``front`` to port ``back`` of 127.0.0.1, in a thread of its own."""

    def __init__(self, front: int, back: int) -> None:
        self._front, self._back = front, back
        self._loop = asyncio.new_event_loop()
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._listening = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"relay {front}", daemon=True)

    def __enter__(self) -> Self:
        """Start to listen. Raises ``OSError`` if the port is in use."""
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the relay and all its connections."""
        with contextlib.suppress(RuntimeError):  # The loop is closed if the relay never listened.
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """Stop forwarding. When this returns, the link is cut."""
        self._call(self._forwarding.clear)

    def heal(self) -> None:
        """Forward again, the data in flight first."""
        self._call(self._forwarding.set)

    def _call(self, action: Callable[[], object]) -> None:
        """Run ``action`` in the relay's thread and wait for it."""

        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(5.0)

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
            # A new connection must not get through either while the link is cut.
            await self._forwarding.wait()
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._back)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, back_writer), self._pump(back_reader, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Forward data until one side closes its connection."""
        try:
            while data := await source.read(_CHUNK_BYTES):
                await self._forwarding.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # A broken connection counts as a closed one.
        finally:
            sink.close()
