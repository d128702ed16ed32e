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
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
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
        super().__init__()
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
        self._silent: set[WebConnection] = set()
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = _LONGEST_HEADERS
        self._config.keep_alive_timeout = _KEEP_ALIVE

    async def serve(self, accepted: Accepted, connection: WebConnection, tls: ssl.SSLContext | None) -> None:
        """Serve a connection to its end. Raises OSError, also if the TLS handshake fails."""
        loop = asyncio.get_running_loop()
        reader = _Reader(connection)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport: asyncio.Transport | None = None
        try:
            with connection.stream:
                # Until the first byte arrives, a stranger costs hardly more than its descriptor.
                self._silent.add(connection)
                with anyio.move_on_after(self._to_begin) as silence:
                    await anyio.wait_readable(accepted.socket)
                self._silent.discard(connection)
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
                server = TCPServer(self._app, loop, self._config, self._context, state, reader, writer)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, connection, transport)
                    await server.run()
                    tasks.cancel_scope.cancel()
            with anyio.move_on_after(_LINGER):
                # The last response may not have been sent completely.
                while transport is not None and connection.ended is None and transport.get_write_buffer_size():
                    await anyio.sleep(_FLUSH_LOOK)
        finally:
            self._silent.discard(connection)
            if transport is None:
                accepted.socket.close()
            else:
                transport.abort()

    async def stop(self) -> None:
        """End the idle connections, and the others after their request."""
        for connection in self._silent:
            connection.stream.cancel()
        await self._context.terminated.set()

    async def _watch(self, connection: WebConnection, transport: asyncio.WriteTransport) -> None:
        """End a connection whose client does not send a request, or does not read its response."""
        left, since = 0, time.monotonic()
        while True:
            await anyio.sleep(min(_LOOK, self._to_begin))
            now = time.monotonic()
            if not connection.requests and now - connection.began > self._to_begin:
                connection.end("no request in time")
            waiting = transport.get_write_buffer_size()
            if waiting != left or not waiting:
                left, since = waiting, now
            elif now - since > self._timeout:
                connection.end(f"the client took nothing for {self._timeout:.3g} seconds")


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
