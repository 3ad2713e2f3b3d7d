"""What the demo's page accepts: small requests without files."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 2**16  # bytes of a request; the longest prompt takes 12 kB
MAX_WAITING = 32  # calls in the queue; further ones are refused
KEEP_SECONDS = 3600  # after which a generated image is deleted


class RequestLimits:
    """ASGI middleware that refuses uploads and large requests before any of their bytes are stored.

    The page has no upload, but gradio serves its upload addresses for every page.

    Args:
        app: The application.
        max_body: The largest request, in bytes.
    """

    def __init__(self, app: Any, max_body: int = MAX_BODY) -> None:
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        length = headers.get(b"content-length", b"0")
        if headers.get(b"content-type", b"").lower().lstrip().startswith(b"multipart/"):
            await _refuse(send, 403, b"this page takes no files")
        elif not length.isdigit() or int(length) > self.max_body:
            await _refuse(send, 413, b"the request is too large")
        else:
            await self.app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        """`receive` for requests without a length, which end as if the client had left once they are too large."""
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return {"type": "http.disconnect"} if taken > self.max_body else message

        return limited


async def _refuse(send: Send, status: int, reason: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": reason})
