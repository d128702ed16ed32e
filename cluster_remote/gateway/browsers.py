"""Keep pages of other sites from using a gateway through a visitor's browser.

A browser adds a remembered login to every request, also to those that a page makes it send: a page could have content
removed. Programs never send the headers that identify such requests, and the gateway's own page only needs GET.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["guarded"]

# Browsers send at least one of them with every POST (Fetch Standard, Fetch Metadata Request Headers).
_FROM_PAGES = ("origin", "sec-fetch-site")


def guarded(app: ASGIApp) -> ASGIApp:
    """Refuse requests from pages that could change something, and keep browsers from guessing content types."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        received = Headers(scope=scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if "authorization" in received:
                    # Content that requires a login cannot be embedded in a page of another site.
                    headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        if scope["method"] not in ("GET", "HEAD") and any(name in received for name in _FROM_PAGES):
            refusal = Response("this is for programs, not for pages in a browser\n", 403, media_type="text/plain")
            await refusal(scope, receive, answer)
        else:
            await app(scope, receive, answer)

    return serve
