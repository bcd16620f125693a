"""A folder on the loopback as an object store gives it: ETags, conditions, ranges and delays."""

import contextlib
import hashlib
import http.server
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Place:
    """What a server was asked for, and how it answers.

    Attributes:
        url: Of the folder.
        sent: (path, status, bytes of the body) of each answer.
        delay_s: Before each answer.
        etags: Whether answers tell a file's generation.
        before: Called with each path before it is looked at.
        refuses: Status of every answer from now on, if any.
    """

    def __init__(self, delay_s: float, etags: bool) -> None:
        self.url = ""
        self.sent: list[tuple[str, int, int]] = []
        self.delay_s = delay_s
        self.etags = etags
        self.before: Callable[[str], None] = lambda path: None
        self.refuses: int | None = None

    def forget(self) -> None:
        self.sent.clear()

    def body_bytes(self, below: str = "/c/") -> int:
        """Bytes of the bodies sent of chunks."""
        return sum(n for path, _, n in self.sent if below in path)


@contextlib.contextmanager
def remote(folder: pathlib.Path, delay_s: float = 0.0, etags: bool = True) -> Iterator[Place]:
    """Serve a folder."""
    state = Place(delay_s, etags)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.before(self.path)
            time.sleep(state.delay_s)
            if state.refuses is not None:
                self._answer(state.refuses, b"")
                return
            file = folder / self.path.strip("/")
            try:
                data = file.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._answer(404, b"")
                return
            tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            headers = {"ETag": tag} if state.etags else {}
            if state.etags and self.headers.get("If-None-Match") == tag:
                self._answer(304, b"", headers)
                return
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            if asked is None:
                self._answer(200, data, headers)
                return
            first, last = asked.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            part = data[start : int(last) + 1 if first and last else None]
            stop = start + len(part) - 1
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
            self._answer(206, part, headers)

        do_HEAD = do_GET

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            sent = 0 if self.command == "HEAD" else len(body)
            state.sent.append((self.path, status, sent))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if sent:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
