"""A TCP proxy for tests that is as bad as a network can be, once, when it is told to."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """Passes bytes on to `target` until a fault is set; each fault acts once.

    `cut_upload`: after so many bytes to the server the connection is cut in the middle. `lose_response`: after so many
    bytes to the server its next answer is thrown away and the connection cut. `stall`: after so many bytes to the server
    nothing passes for `seconds`. `closed`: no connection at all, and those that there are end with their next byte.
    """

    target: int
    port: int = 0
    cut_upload: int | None = None
    lose_response: int | None = None
    stall: int | None = None
    seconds: float = 0.0
    closed: bool = False
    acted: list[str] = field(default_factory=list)
    up: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _fault(self, name: str) -> bool:
        """Whether this fault acts now."""
        with self._lock:
            limit = getattr(self, name)
            if limit is None or self.up < limit:
                return False
            setattr(self, name, None)
            self.acted.append(name)
            return True

    def _pump(self, source: socket.socket, sink: socket.socket, *, upward: bool) -> None:
        with contextlib.suppress(OSError):
            while (data := source.recv(65536)) and not self.closed:
                if upward:
                    with self._lock:
                        self.up += len(data)
                    if self._fault("stall"):
                        time.sleep(self.seconds)
                    if self._fault("cut_upload"):
                        break
                elif self._fault("lose_response"):
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    if self.closed:
                        raise OSError
                    far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                    far.settimeout(None)
                except OSError:
                    near.close()
                    continue
                for source, sink, upward in ((near, far, True), (far, near, False)):
                    threading.Thread(
                        target=self._pump, args=(source, sink), kwargs={"upward": upward}, daemon=True
                    ).start()


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """An open proxy to a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Proxy(target, listener.getsockname()[1])
        threading.Thread(target=made._accept, args=(listener,), daemon=True).start()
        yield made
