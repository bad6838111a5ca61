# SPDX-License-Identifier: Apache-2.0
"""The application: which path is which page. Who may come so far is `access`'s to say.

Whatever asks a daemon runs in a thread of the pool. Live pages are fragments of the same templates, sent when they
change.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from remusdb.console import actions, pages
from remusdb.console.access import SESSION_S, App, Guard, Rules, Sessions, cookie_of
from remusdb.console.metrics import Collector
from remusdb.console.watching import EACH_S, Look, Watching
from remusdb.console.works import Works
from remusdb.control.api import PastOf
from remusdb.control.both import Told
from remusdb.control.client import call
from remusdb.errors import RemusError, UsageError
from remusdb.history import Event
from remusdb.jsontext import parse_json
from remusdb.names import VmName, require_name

BODY_MOST_BYTES = 4096
MOST_STREAMS = 64  # browsers that look at a live page
WRONG_TOKEN_S = 0.5  # nobody tries many
DAEMON_S = 5.0  # so long a daemon may take to answer a page
SHOWN_EVENTS = 100


class Wanted(Struct, frozen=True):
    """What comes with an action."""

    host: str | None = None


class Console:
    """All of it. `ask` asks both daemons; `ends`: the server is to end, so streams do."""

    def __init__(
        self,
        rules: Rules,
        watching: Watching,
        works: Works,
        *,
        run_dir: Path,
        ask: Callable[[], Told],
        machine: str,
        port: int,
        ends: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rules, self._watching, self._works = rules, watching, works
        self._run_dir, self._ask, self._machine, self._ends = run_dir, ask, machine, ends
        self._sessions, self._cookie = Sessions(), f"remusdb-console-{port}"
        self._streams = 0
        self._asking, self._asked_at, self._answers = asyncio.Lock(), -EACH_S, Told()
        self._registry = CollectorRegistry()
        self._registry.register(Collector(ask))

    def app(self) -> App:
        """It, as ASGI."""
        routes = [
            Route("/", self._overview),
            Route("/vm/{vm}", self._vm),
            Route("/vm/{vm}/samples", self._samples),
            Route("/vm/{vm}/do/{action}", self._do, methods=["POST"]),
            Route("/events", self._events),
            Route("/login", self._login_page),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Mount("/static", StaticFiles(directory=pages.HERE / "static")),
        ]
        return Guard(Starlette(routes=routes), self._rules, self._sessions, self._cookie)

    # pages

    async def _overview(self, _request: Request) -> Response:
        return self._page("overview.html", **pages.overview(self._watching.newest, self._machine))

    async def _vm(self, request: Request) -> Response:
        name = _name(request)
        look = self._watching.newest
        if name is None or (look.of(name) is None and not await run_in_threadpool(self._past, name)):
            gone = page_of_error(f"There is no VM {request.path_params['vm']} here.")
            return HTMLResponse(gone, 404)
        return self._page("vm.html", history=await self._history(name), **self._told(look, name))

    async def _login_page(self, request: Request) -> Response:
        return HTMLResponse(pages.page("login.html", to=_local(request.query_params.get("to", "/")), wrong=False))

    async def _login(self, request: Request) -> Response:
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        to, given = _local(form.get("to", ["/"])[0]), form.get("token", [""])[0].strip()
        if self._rules.token is None or not hmac.compare_digest(given.encode(), self._rules.token.encode()):
            await asyncio.sleep(WRONG_TOKEN_S)
            return HTMLResponse(pages.page("login.html", to=to, wrong=True), 403)
        response = RedirectResponse(to, 303)
        response.set_cookie(
            self._cookie, self._sessions.new(time.monotonic()), max_age=int(SESSION_S), httponly=True,
            samesite="strict", secure=self._rules.tls,
        )  # fmt: skip
        return response

    async def _logout(self, request: Request) -> Response:
        self._sessions.end(cookie_of(request.headers.get("cookie", ""), self._cookie))
        response = JSONResponse({"to": "/login"})
        response.delete_cookie(self._cookie)
        return response

    # live

    async def _samples(self, request: Request) -> Response:
        return JSONResponse(self._watching.samples(request.path_params["vm"]))

    async def _events(self, request: Request) -> Response:
        if self._streams >= MOST_STREAMS:
            return JSONResponse({"error": f"{MOST_STREAMS} pages are open already"}, 503, {"retry-after": "10"})
        name = request.query_params.get("vm")
        return StreamingResponse(self._stream(name), media_type="text/event-stream")

    async def _stream(self, name: str | None) -> AsyncIterator[str]:
        """Each look, as the fragments of the page that it changes. Ends with the browser's connection."""
        self._streams += 1
        sent: dict[str, str] = {}
        seen, state = -1, ""
        try:
            while not self._ends():
                look = self._watching.newest
                if look.number != seen:
                    seen = look.number
                    fragments = self._fragments(look, name)
                    if name is not None and (now := _past_changes_with(look, name)) != state:
                        state = now  # the daemons read their files only when there may be something new
                        fragments["history"] = pages.page("part_history.html", history=await self._history(name))
                    news = {key: html for key, html in fragments.items() if sent.get(key) != html}
                    sent.update(news)
                    last = self._watching.samples(name)[-1:] if name is not None else []
                    yield f"data: {json.dumps({'fragments': news, 'samples': last})}\n\n"
                await asyncio.sleep(EACH_S / 4)
        finally:
            self._streams -= 1

    def _fragments(self, look: Look, name: str | None) -> dict[str, str]:
        if name is None:
            told = pages.overview(look, self._machine)
            return {part: pages.page(f"part_{part}.html", **told) for part in ("verdict", "vms", "at")}
        told = self._told(look, name)
        parts = ("vm", "figures", "actions", "work", "full", "at")
        return {part: pages.page(f"part_{part}.html", may_act=self._rules.may_act, **told) for part in parts}

    def _told(self, look: Look, name: str) -> dict[str, Any]:
        return pages.vm(look, look.of(name), name, self._works.of(name), self._machine)

    async def _history(self, name: str) -> list[dict[str, Any]]:
        return pages.events(await run_in_threadpool(self._past, name))

    def _past(self, name: str) -> list[Event]:
        """What both daemons' histories have, each event once; the newest `SHOWN_EVENTS`."""
        found: dict[tuple[Any, ...], Event] = {}
        for daemon in self._watching.newest.told.asked:
            try:
                past = call(self._run_dir / f"{daemon}.sock", PastOf(vm=require_name(name), last=SHOWN_EVENTS),
                            timeout_s=DAEMON_S)  # fmt: skip
            except RemusError:
                continue  # the verdict says that it does not answer
            found |= {(one.at_ns, one.by, one.event, one.host): one for one in past.events}
        return sorted(found.values(), key=lambda one: one.at_ns)[-SHOWN_EVENTS:]

    # actions

    async def _do(self, request: Request) -> Response:
        try:
            name = require_name(request.path_params["vm"])
            action = actions.named(request.path_params["action"])
            host = parse_json(await _body(request) or b"{}", Wanted).host or ""
            if action.asks_host and not 1 <= len(host) <= 255:
                raise UsageError("which host?", hint="one of [peers] in host.toml")
            work = self._works.begin(name, action, action.request(name, host))
        except RemusError as exc:
            return JSONResponse({"error": str(exc), "hint": exc.hint}, 409)
        except ValueError as exc:
            return JSONResponse({"error": f"this is no action: {exc}", "hint": ""}, 400)
        return JSONResponse({"state": work.state}, 202)

    # for machines

    async def _metrics(self, _request: Request) -> Response:
        return Response(await run_in_threadpool(generate_latest, self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _healthz(self, _request: Request) -> Response:
        told = await self._shared()
        return JSONResponse({name: name not in told.errors for name in told.asked}, 503 if told.errors else 200)

    async def _readyz(self, _request: Request) -> Response:
        told = await self._shared()
        verdict = told.judged().verdict
        good = verdict != "not-protected" and not told.errors
        return JSONResponse({"verdict": verdict}, 200 if good else 503)

    async def _shared(self) -> Told:
        """What the daemons say, a second old at most: who has no token cannot keep them busy."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= EACH_S:
                self._answers = await run_in_threadpool(self._ask)
                self._asked_at = time.monotonic()
            return self._answers

    def _page(self, template: str, /, **told: Any) -> Response:
        rules = self._rules
        return HTMLResponse(
            pages.page(template, may_act=rules.may_act, locked=rules.locked, secret=self._sessions.word, **told)
        )


def page_of_error(words: str) -> str:
    """A page that says what is wrong."""
    return pages.page("error.html", words=words)


def _past_changes_with(look: Look, vm: str) -> str:
    """Another text whenever something may have happened to a VM that its history has; and every tenth look."""
    one = look.of(vm)
    return f"{look.number // 10} " + (f"{one.state} {one.term} {one.why} {one.troubles}" if one else "")


def _name(request: Request) -> VmName | None:
    try:
        return require_name(request.path_params["vm"])
    except UsageError:
        return None


def _local(to: str) -> str:
    """Where to go after the login: a page of ours."""
    return to if to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable() else "/"


async def _body(request: Request) -> bytes:
    """ValueError for one that is too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MOST_BYTES:
            raise ValueError("the request is too long")
    return body
