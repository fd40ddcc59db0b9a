"""Object stores that misbehave, made of a real one and a real server in front of it: one forgets a header, one can be cut off."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from crm_resources.object_store import Credentials

_NOT_HANDED_ON = {"authorization", "x-amz-date", "x-amz-content-sha256", "connection", "transfer-encoding", "content-length"}


@contextmanager
def forgetful_store(endpoint: str, keys: Credentials, header: str, region: str = "us-east-1") -> Iterator[str]:
    """A store that ignores one header of every request, as some stores ignore conditions.

    The header is part of what the client signs, so the server signs what is left itself.

    Args:
        endpoint: the real store.
        keys: credentials of the real store.
        header: the header it ignores.
        region: region the signature names.

    Yields:
        The endpoint of the forgetful one.
    """
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as SigningKeys

    signer = S3SigV4Auth(SigningKeys(keys.access_key, keys.secret_key), "s3", region)
    upstream = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            dropped = _NOT_HANDED_ON | {header.lower(), "host"}
            kept = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            request = AWSRequest(self.command, f"{endpoint}{self.path}", headers=kept, data=body)
            signer.add_auth(request)
            assert upstream.hostname is not None
            connection = http.client.HTTPConnection(upstream.hostname, upstream.port)
            connection.request(self.command, self.path, body, dict(request.headers.items()))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "connection", "date", "server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

        def log_message(self, *_arguments: object) -> None:
            """Nothing: a test tells what went wrong itself."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


class CutOff:
    """A way to a store that can be cut: connections are ended, and new ones too."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """End every connection, and every later one at once."""
        self._is_cut = True
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def close(self) -> None:
        """End it."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    client.close()
                    continue
                store = socket.create_connection(self._upstream)
                self._sockets += [client, store]
                for source, target in ((client, store), (store, client)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
