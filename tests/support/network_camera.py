"""A network camera that a thread of the test plays."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable

import cv2
import numpy as np


class Server:
    """A network camera: JPEG after JPEG over HTTP. It can stand still, hang up, and come back."""

    def __init__(self) -> None:
        self.is_sending = threading.Event()
        self.is_sending.set()
        self.hang_up = threading.Event()
        self.refuse = False
        self.is_damaged: Callable[[int], bool] = lambda _number: False
        self.size_of: Callable[[int], tuple[int, int]] = lambda _number: (48, 64)
        self.served = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://me:secret@127.0.0.1:{self._server.server_port}/video.mjpg"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if self.refuse:
            handler.send_error(503)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        try:
            while not self.hang_up.is_set():
                self.is_sending.wait(30)
                pixels = np.full((*self.size_of(self.served), 3), self.served % 250, np.uint8)
                data = cv2.imencode(".jpg", pixels)[1].tobytes()
                if self.is_damaged(self.served):
                    data = data[: len(data) // 2]
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                handler.wfile.write(head.encode() + data + b"\r\n")
                self.served += 1
                time.sleep(0.01)
        except OSError:
            pass

    def close(self) -> None:
        self.hang_up.set()
        self.is_sending.set()
        self._server.shutdown()
        self._server.server_close()
