"""Nothing is asked of the network: every family loads and makes an image where sockets cannot be opened."""

from __future__ import annotations

import os
import socket
from typing import Any, NoReturn

import pytest

from tests.pipeline.oracle import draw
from tests.pipeline.test_families import cell_of
from tests.pipeline.zoo import ZOO, Zoo


def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError(f"the network was asked: {args}")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ZOO)
def test_every_family_loads_and_makes_an_image_offline(name: str, zoo: Zoo) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert draw(cell_of(zoo(name))).std() > 5


@pytest.mark.usefixtures("no_network")
def test_the_network_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="the network was asked"):
        socket.create_connection(("127.0.0.1", 9))
