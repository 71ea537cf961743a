"""A server that an HttpAgent posts to: {"text": "First. Second."} is answered {"summary": "First."}.

    python3 examples/summarise_server.py 8080

Only the standard library: any language with an HTTP server does as well.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Summarise(BaseHTTPRequestHandler):
    """Answers one task: 2xx is its result, 4xx rejects it for good, 429 and 503 ask for another time."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the payload, answer the result."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/summarise":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there is only /summarise"})
            return
        payload = json.loads(body)
        if not isinstance(payload, dict) or not isinstance(payload.get("text"), str):
            self._answer(
                HTTPStatus.UNPROCESSABLE_ENTITY, {"error": 'the payload must look like {"text": "…"}'}
            )
            return
        first = payload["text"].partition(".")[0].strip()
        self._answer(HTTPStatus.OK, {"summary": f"{first}.", "task": self.headers["Warren-Task-Id"]})

    def _answer(self, status: HTTPStatus, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Summarise)
    sys.stderr.write(f"listening on http://127.0.0.1:{server.server_port}/summarise\n")
    server.serve_forever()
