"""What LMCache's ``resp`` L2 adapter logs in to: a socket that answers OK to everything and keeps what it was told."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PasswordStore:
    """Its port, and all bytes that were sent to it."""

    def __init__(self, listening: socket.socket) -> None:
        self.port = int(listening.getsockname()[1])
        self.told: list[bytes] = []
        self._listening = listening

    def listen(self) -> None:
        """Until it is closed."""
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            while asked := connection.recv(2**16):
                self.told.append(asked)
                connection.sendall(b"+OK\r\n" * asked.count(b"*"))


@contextmanager
def password_store() -> Iterator[PasswordStore]:
    """One, while it is open."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        store = PasswordStore(listening)
        thread = threading.Thread(target=store.listen, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
