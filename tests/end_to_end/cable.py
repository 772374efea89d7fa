"""A broker at the end of a cable that can be cut: it lives on, and nobody reaches it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

from worker.local_server import HOST, free_port
from worker.local_stack import LocalBroker


class Cable:
    """Carries connections to a port of this machine; blocking, cut and mended by one caller."""

    def __init__(self) -> None:
        self.port = free_port()
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    def mend(self, target_port: int) -> None:
        """Let connections to the target through from now on."""
        self._listener = socket.create_server((HOST, self.port))
        threading.Thread(target=self._accept, args=(self._listener, target_port), daemon=True).start()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            _hang_up(end)

    def _accept(self, listener: socket.socket, target_port: int) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((HOST, target_port))
                with self._lock:
                    self._ends |= {near, far}
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_carry, args=(source, target), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    _hang_up(source)
    _hang_up(target)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class FarBroker(LocalBroker):
    """Reached by its cable alone: that is the address it tells its clients."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.cable = Cable()

    @property
    def bootstrap_servers(self) -> str:
        return f"{HOST}:{self.cable.port}"

    def mend(self) -> None:
        self.cable.mend(self.port)

    def _command(self) -> list[str]:
        advertised = f"--advertised-listener-url=tcp://{self.bootstrap_servers}"
        return [advertised if part.startswith("--advertised") else part for part in super()._command()]
