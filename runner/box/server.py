"""HTTP: uvicorn on our sockets and our loop, and who is at the other end of each connection."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from runner import errors
from runner.box import origins
from runner.box.api import House, make_app
from runner.box.api.house import Network
from runner.box.auth import browser, peer, visitor
from runner.box.diary import Diary
from runner.box.origins import own_names
from runner.box.porch import NotThere, Porch, Visitor, listeners
from runner.box.settings import Settings

GOODBYE_SECONDS = 5  # for requests that are being answered when the daemon ends
PAGE_PORT = 7480  # of the dashboard, so that a browser finds it again; another one where it is taken
BACKLOG = 64


class _Protocol(H11Protocol):
    """uvicorn's, which says who is at the other end; and `here` are its connections without those of the network."""

    def __init__(self, here: set[object], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._here = here

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._here.add(self)
        self.client = peer(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._here.discard(self)
        super().connection_lost(exc)


class _Browsed(_Protocol):
    """Of a browser on this computer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        H11Protocol.connection_made(self, transport)
        self._here.add(self)
        self.client = browser(transport.get_extra_info("peername")[:2])


class _Visited(H11Protocol):
    """Of a connection over the network."""

    def __init__(self, porch: Porch, born: Visitor, *given: Any) -> None:
        super().__init__(*given)
        self._porch, self._visitor = porch, born

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = visitor(self._visitor.address)

    def connection_lost(self, exc: Exception | None) -> None:
        self._porch.gone(self._visitor)
        super().connection_lost(exc)


class Server:
    """uvicorn on our socket and our loop, without its own main loop, which would wake ten times a second."""

    def __init__(self, house: House, pages: Callable[[FastAPI], None] | None = None) -> None:
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what goes wrong is said by Front
        self._house = house
        self._porch: Porch | None = None
        self._page: asyncio.Server | None = None  # where this computer's browser comes in, once somebody asked for it
        self._here: set[object] = set()
        house.connections = self._here
        house.open_page = self._open_page
        config = uvicorn.Config(
            make_app(house, pages),
            loop="asyncio",
            http=partial(_Protocol, self._here),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,  # or a header could say who asks
            server_header=False,
            date_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GOODBYE_SECONDS,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)

    async def begin(self, sock: socket.socket) -> None:
        await self._server.startup(sockets=[sock])

    def open_porch(self, chosen: Settings, diary: Diary) -> bool:
        """Listen on the network, too: the same application, TLS with the box's own certificate, tokens.

        False: the address is not there yet, or the port is taken; whoever is on the box can use it all the same."""
        from runner.box.certificate import Certificate  # only a box on the network pays for it

        names = own_names(chosen.name, chosen.https_names)
        certificate = Certificate(chosen.state.certificate, names)
        try:
            sockets = listeners(chosen.https)
        except NotThere as problem:
            if self._house.unreachable != problem.message:
                diary.write(f"laptops can't reach it yet: {problem.message}; {problem.hint}")
            self._house.unreachable = problem.message
            return False
        porch = self._porch = Porch(sockets, certificate.context, self._visited)
        self._house.network = Network(names, porch.port, porch.host, certificate.fingerprint, porch.let_in)
        self._house.unreachable = None
        diary.write(f"laptops reach it at {chosen.https}")
        return True

    async def _open_page(self) -> int:
        """Listen on 127.0.0.1, for a browser; the port. The same one each time, where it is free."""
        if self._page is None:
            for port in (PAGE_PORT, 0):
                with suppress(OSError):
                    loop = asyncio.get_running_loop()
                    self._page = await loop.create_server(self._browsed, origins.LOOPBACK, port, backlog=BACKLOG)
                    break
            else:
                raise errors.Busy("the dashboard found no port on 127.0.0.1", "close what uses them")
        return int(self._page.sockets[0].getsockname()[1])

    def _browsed(self) -> asyncio.Protocol:
        config, server = self._server.config, self._server
        return _Browsed(self._here, config, server.server_state, server.lifespan.state)

    def _visited(self, born: Visitor) -> asyncio.Protocol:
        assert self._porch is not None, "it is open when somebody comes in"
        config, server = self._server.config, self._server
        return _Visited(self._porch, born, config, server.server_state, server.lifespan.state)

    async def finish(self) -> None:
        self._house.close_streams()
        if self._porch is not None:
            self._porch.close()
        if self._page is not None:
            self._page.close()
        await self._server.shutdown()
