"""Refuses network connections while a model is built, and tells the caller which hosts the factory asked for weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

#: Environment variables that libraries read before they ask a hub.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class Refused(ConnectionError):
    """A connection was asked for and not made."""


@contextmanager
def offline() -> Iterator[list[str]]:
    """Connections of this process raise `Refused` inside the block; the list holds the hosts that were asked for."""
    requests: list[str] = []

    def refuse(host: Any) -> None:
        requests.append(str(host))
        raise Refused(f"{host} was asked for, and nothing is downloaded")

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            refuse(address[0])
        plain(self, address)

    plain = socket.socket.connect
    names = mock.patch.object(socket, "getaddrinfo", lambda host, *_, **__: refuse(host))
    with mock.patch.object(socket.socket, "connect", connect), names, mock.patch.dict(os.environ, ENVIRONMENT):
        yield requests
