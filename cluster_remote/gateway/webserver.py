"""Serve HTTP/1.1 on the gateway's connections with Hypercorn, within the limits for every client.

The gateway accepts the connections itself, so that it can count and end them. HTTP/2 is refused: it would put many
clients in one slot.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster_remote.gateway.listeners import Accepted
from cluster_remote.gateway.slots import Connection

__all__ = ["WebConnection", "WebServer"]

# Seconds that a connection without a request stays open: normally, and while other clients wait.
_KEEP_ALIVE, _KEEP_ALIVE_IF_FULL = 90.0, 1.0
# Maximum bytes of a request's headers.
_LONGEST_HEADERS = 64 * 1024
# Seconds for a client to finish sending unwanted data before it gets the end of its response.
_LINGER = 2.0
# Bytes to read from a client at once, and bytes of a response to send together.
_READ, _SEND = 256 * 1024, 64 * 1024
# Parts of a body that wait for the application.
_AHEAD = 3
# Seconds between checks whether a client makes progress, and whether the last bytes have been sent.
_LOOK, _FLUSH_LOOK = 1.0, 0.02


@dataclass(eq=False)
class WebConnection(Connection):
    """A connection over HTTP. `say` writes to the gateway's log."""

    say: Callable[[str], None] = print
    longest_idle: float = _KEEP_ALIVE_IF_FULL
    requests: int = 0

    def __post_init__(self) -> None:
        self.stream = anyio.CancelScope()
        """Encloses everything that is done with the connection."""
        self.busy = False
        """Whether a request is being read or answered."""
        self._request: anyio.CancelScope | None = None
        self._gone = False

    def end(self, why: str) -> None:
        """End the connection, see Connection. A running request can still close what it has opened."""
        if self.ended is None:
            self.ended = why
            (self._request or self.stream).cancel()

    def gone(self) -> None:
        """Handle that the client has hung up. Hypercorn would keep the connection until its idle timeout."""
        self._gone = True
        if self._request is None:
            self.stream.cancel()

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self.requests += 1
        self.idle_since = None
        body = _Body(receive)
        try:
            with anyio.CancelScope() as self._request:
                await app(scope, body.receive, _Answer(send, body).send)
        finally:
            self._request = None
            self.idle_since = time.monotonic()
            if self.ended is not None or self._gone or not body.ended:
                # The server would wait for a client that keeps sending.
                self.stream.cancel()


class _Reader(asyncio.StreamReader):
    """Calls `gone` of the connection when its client hangs up."""

    def __init__(self, connection: WebConnection) -> None:
        super().__init__(_READ)
        self._connection = connection

    def feed_eof(self) -> None:
        super().feed_eof()
        self._connection.gone()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._connection.gone()


class _Body:
    """The body of a request, and whether all of it has arrived."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.ended = True
        return message

    async def rest(self) -> None:
        """Read what is left."""
        while not self.ended:
            await self.receive()


class _Answer:
    """Holds back the end of a response for a while if the request has not ended.

    Hypercorn cannot end it while parts of the request are unread; and a client that is disconnected while sending may
    not see the response.
    """

    def __init__(self, send: Send, body: _Body) -> None:
        self._send = send
        self._body = body

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body") or self._body.ended:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        with anyio.move_on_after(_LINGER):
            await self._body.rest()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._body.rest)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()


class _Parser(h11.Connection):
    """Joins what has arrived of a body: handling a part costs about the same whatever its length."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _LONGEST_HEADERS)
        self._next: Any = None

    def next_event(self) -> Any:
        event, self._next = self._next or super().next_event(), None
        if not isinstance(event, h11.Data):
            return event
        parts = [event.data]
        while isinstance(event := super().next_event(), h11.Data):
            parts.append(event.data)
        self._next = event
        return h11.Data(data=b"".join(parts))


class _Server(TCPServer):
    """Hypercorn's server of one connection, with fewer and larger reads and writes, and no task for idle times."""

    connection: WebConnection

    def __init__(self, connection: WebConnection, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection = connection
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0

    async def protocol_send(self, event: Event) -> None:
        match event:
            case RawData(data=data):
                if not self._unsent:
                    # A small response becomes one write: what follows in this turn of the event loop goes with it.
                    self.loop.call_soon(self._flush)
                self._unsent.append(data)
                self._unsent_bytes += len(data)
                if self._unsent_bytes >= _SEND or _buffered(self.writer.transport):
                    self._flush()
                    try:
                        await self.writer.drain()
                    except ConnectionError:
                        await self.protocol.handle(Closed())
            case Updated(idle=idle):
                self.connection.busy = not idle
            case _:
                await super().protocol_send(event)

    def _flush(self) -> None:
        data, self._unsent, self._unsent_bytes = b"".join(self._unsent), [], 0
        if data and not self.writer.is_closing():
            self.writer.write(data)

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            protocol.connection = _Parser()
        try:
            while data := await self.reader.read(_READ):
                await self.protocol.handle(RawData(data))
        except OSError:
            pass
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        self._flush()
        await super()._close()

    async def _idle_timeout(self) -> None:
        """Do nothing: WebServer ends idle connections."""


class WebServer:
    """Serves one application on any number of connections.

    `to_begin` is the deadline for the head of a client's first request, `timeout` for accepting a part of a response;
    both in seconds.
    """

    def __init__(self, app: ASGIApp, to_begin: float, timeout: float) -> None:
        # Starlette and Hypercorn have different types for the same interface.
        wrapped: Any = _on_connection(app)
        self._app = ASGIWrapper(wrapped)
        self._to_begin = to_begin
        self._timeout = timeout
        self._context = WorkerContext(None)
        self._connections: set[WebConnection] = set()
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.max_app_queue_size = _AHEAD

    async def serve(self, accepted: Accepted, connection: WebConnection, tls: ssl.SSLContext | None) -> None:
        """Serve a connection to its end. Raises OSError, also if the TLS handshake fails."""
        loop = asyncio.get_running_loop()
        reader = _Reader(connection)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport: asyncio.Transport | None = None
        self._connections.add(connection)
        try:
            with connection.stream:
                # Until the first byte arrives, a stranger costs hardly more than its descriptor.
                with anyio.move_on_after(self._to_begin) as silence:
                    await anyio.wait_readable(accepted.socket)
                if silence.cancelled_caught:
                    connection.end("no request in time")
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    accepted.socket,
                    ssl=tls,
                    ssl_handshake_timeout=self._to_begin if tls is not None else None,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                state: Any = {"connection": connection}
                server = _Server(connection, self._app, loop, self._config, self._context, state, reader, writer)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, connection, transport)
                    await server.run()
                    tasks.cancel_scope.cancel()
            with anyio.move_on_after(_LINGER):
                # The last response may not have been sent completely.
                while transport is not None and connection.ended is None and _buffered(transport):
                    await anyio.sleep(_FLUSH_LOOK)
        finally:
            self._connections.discard(connection)
            if transport is None:
                accepted.socket.close()
            else:
                transport.abort()

    async def stop(self) -> None:
        """End the idle connections, and the others after their request."""
        for connection in self._connections:
            if not connection.busy:
                connection.stream.cancel()
        await self._context.terminated.set()

    async def _watch(self, connection: WebConnection, transport: asyncio.WriteTransport) -> None:
        """End a connection whose client does not send a request, or does not read its response.

        One without a request for too long ends quietly.
        """
        left, since = 0, time.monotonic()
        while True:
            await anyio.sleep(min(_LOOK, self._to_begin))
            now = time.monotonic()
            if not connection.requests and now - connection.began > self._to_begin:
                connection.end("no request in time")
            if connection.idle_since is not None and now - connection.idle_since > _KEEP_ALIVE:
                connection.stream.cancel()
            waiting = _buffered(transport)
            if waiting != left or not waiting:
                left, since = waiting, now
            elif now - since > self._timeout:
                connection.end(f"the client took nothing for {self._timeout:.3g} seconds")


def _buffered(transport: asyncio.WriteTransport) -> int:
    """Return how many bytes wait to be sent; 0 for a TLS transport that was closed twice, which no longer knows."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        return 0


def _on_connection(app: ASGIApp) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["http_version"] not in ("1.0", "1.1"):
            await _refused(send, 505)
        elif {b"content-length", b"transfer-encoding"} <= {name.lower() for name, _ in scope["headers"]}:
            # A proxy in between may have used the other of the two as the length (RFC 9112, 6.1).
            await _refused(send, 400)
        else:
            connection: WebConnection = scope["state"]["connection"]
            await connection.serve(app, scope, receive, send)

    return serve


async def _refused(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
