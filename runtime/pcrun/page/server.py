"""Answers browsers: the page itself, what it shows, and the one thing it may change."""

import hmac
import ipaddress
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pcrun._version import __version__
from pcrun.errors import BackendError, SinkError
from pcrun.page.pictures import FramePainter
from pcrun.page.state import LineState

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Nothing from elsewhere, no scripts or styles inside the page, no frame around it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FRAME_HEADER = "X-Frame"
_SHOWN_WITH_A_FRAME = ("source", "frame", "time", "verdict", "score", "threshold", "alarm", "error")
_LARGEST_BODY = 4096
_START_S = 10.0
_END_S = 3.0


class PageServer:
    """Serves the page from a thread of its own.

    Attributes:
        host, port: where it listens.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        lines: Sequence[LineState],
        change_threshold: Callable[[int, float], None],
        token: str,
    ) -> None:
        """Begin to listen.

        Args:
            host, port: address; port 0 takes a free one.
            lines: what is shown.
            change_threshold: takes the number of a line and a threshold in L2 units; raises ValueError.
            token: whoever sends it may change things, and, from another machine, look.

        Raises:
            SinkError: the address cannot be used.
            BackendError: the server does not start.
        """
        listener = _listen(host, port)
        self.host, self.port = listener.getsockname()[:2]
        loopback = ipaddress.ip_address(self.host).is_loopback
        app = _Guard(
            make_app(lines, change_threshold),
            token=token,
            token_to_look=not loopback,
            hosts={"localhost", "127.0.0.1", "[::1]", _in_url(self.host)} if loopback else None,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            loop="asyncio",
            http="h11",
            ws="none",
            proxy_headers=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="page server", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise BackendError("The server of the live page does not start. Try another port.")
            time.sleep(0.005)

    @property
    def url(self) -> str:
        """Address for a browser on this machine, or on the network where it listens to that."""
        return f"http://{_in_url(self.host)}:{self.port}/"

    def close(self) -> None:
        """Stop; who is being answered has a second."""
        self._server.should_exit = True
        self._thread.join(_END_S)


def make_app(lines: Sequence[LineState], change_threshold: Callable[[int, float], None]) -> Starlette:
    """The routes, without the guard before them."""
    painters = [FramePainter(line) for line in lines]

    def line_number(request: Request) -> int:
        text = request.query_params.get("line", "0")
        if not text.isdecimal() or int(text) >= len(lines):
            raise HTTPException(404, f"there is no line {text!r}, only 0 to {len(lines) - 1}")
        return int(text)

    def state(request: Request) -> Response:
        number = line_number(request)
        return JSONResponse(
            {
                "version": __version__,
                "lines": [line.summary() for line in lines],
                "line": lines[number].details(),
            }
        )

    def frame(request: Request) -> Response:
        painted = painters[line_number(request)].frame(heatmap=request.query_params.get("heatmap") != "0")
        if painted is None or request.query_params.get("known") == str(painted.number):
            return Response(status_code=204)
        shown = {key: painted.record[key] for key in _SHOWN_WITH_A_FRAME if key in painted.record}
        # With the picture, so that no other frame's verdict stands above it. ASCII, as headers must be.
        headers = {_FRAME_HEADER: json.dumps({"number": painted.number, **shown})}
        if not painted.jpeg:
            return Response(status_code=204, headers=headers)
        return Response(painted.jpeg, media_type="image/jpeg", headers=headers)

    def anomaly(request: Request) -> Response:
        text = request.query_params.get("number", "")
        found = lines[line_number(request)].anomaly(int(text)) if text.isdecimal() else None
        if found is None or found.jpeg is None:
            raise HTTPException(404, "there is no such picture (any more)")
        return Response(found.jpeg, media_type="image/jpeg")

    async def threshold(request: Request) -> Response:
        number = line_number(request)
        try:
            value = json.loads(await _body(request))["threshold"]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError("threshold must be a finite number")
            change_threshold(number, float(value))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise HTTPException(400, f'expected {{"threshold": number in L2 units}}: {error}') from error
        return JSONResponse({"requested": value}, status_code=202)

    return Starlette(
        routes=[
            *(Route(path, _file(*file)) for path, file in _FILES.items()),
            Route("/api/state", state),
            Route("/api/frame", frame),
            Route("/api/anomaly", anomaly),
            Route("/api/threshold", threshold, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _problem},
    )


class _Guard:
    """Lets in who may come in, and puts headers on every answer."""

    def __init__(self, app: ASGIApp, *, token: str, token_to_look: bool, hosts: set[str] | None) -> None:
        self._app = app
        self._token = token.encode()
        self._token_to_look = token_to_look
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        app = self._refusal(Request(scope)) or self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        # A page elsewhere whose name leads to this machine must not read what is shown here without a token.
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self._hosts is not None and host not in self._hosts:
            return JSONResponse({"error": f"{host!r} is not a name of this machine's loopback"}, 421)
        looks = request.method in ("GET", "HEAD")
        open_to_all = request.url.path in _FILES or not self._token_to_look
        if looks and open_to_all:
            return None
        # In a header that no form and no foreign page can set: a cookie would be sent by them too.
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme == "Bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return None
        return JSONResponse({"error": "the token is missing or wrong"}, 401, {"WWW-Authenticate": "Bearer"})


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _file(name: str, media_type: str) -> Callable[[Request], Response]:
    content = (Path(__file__).parent / name).read_bytes()

    def serve(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return serve


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"more than {_LARGEST_BODY} bytes")
    return body


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(64)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SinkError(
            f"{_in_url(host)}:{port} cannot serve a page ({error.strerror or error}). Choose another port."
        ) from error
    return listener


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
