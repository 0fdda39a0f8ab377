"""Names for queues: a thread of the creator hands the memory to processes of the same user that ask for it.

The name is that of an abstract socket: it stands in no file system and ends with its process.
"""

from __future__ import annotations

import os
import socket
import struct
import threading

__all__ = ["Server", "receive", "serve"]

_PREFIX = "\0gossamer-queue-"


class Server:
    """The listening socket of a name."""

    def __init__(self, listener: socket.socket, file: int) -> None:
        self._listener, self._file, self._process = listener, file, os.getpid()
        os.register_at_fork(after_in_child=listener.close)  # a child must not keep the name
        self._thread = threading.Thread(target=self._run, name="gossamer-queue-name", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if os.getpid() == self._process and self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the waiting of the thread
            self._thread.join(timeout=5)  # which keeps the name as long as it waits
            self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                try:
                    if _user_of(connection) == os.getuid():
                        socket.send_fds(connection, [b"q"], [self._file])
                except OSError:  # whoever asked is gone
                    continue


def serve(name: str, file: int) -> Server:
    """Hand a file descriptor to every process of this user that asks for the name."""
    _check(name)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(_PREFIX + name)
    except OSError:
        listener.close()
        raise ValueError(f"SharedMemoryQueue: name must not be in use, got {name!r}") from None
    listener.listen()
    return Server(listener, file)


def receive(name: str, timeout: float) -> int:
    """The file descriptor behind a name."""
    _check(name)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(_PREFIX + name)
            _, files, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError as error:
            files = []
            reason = str(error)
        else:
            reason = "one of another user"
    if not files:
        raise ValueError(
            f"SharedMemoryQueue.attach: name must be that of an open queue of this user, got {name!r} ({reason})"
        )
    return files[0]


def _check(name: str) -> None:
    if not 0 < len(name.encode()) <= 80 or "\0" in name:
        raise ValueError(f"SharedMemoryQueue: name must have 1 to 80 bytes, none of them zero, got {name!r}")


def _user_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1]
