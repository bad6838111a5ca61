# SPDX-License-Identifier: Apache-2.0
"""Who may see a page, and who may act: asked of every request before anything else looks at it.

`judge` decides on values alone; `Guard` asks it, answers for it where the answer is no, and puts the headers on all
that goes out.

Invariants: a request for another Host is refused (a name of a foreign page that was bound to our address); nothing is
changed by GET, nor by a request that a foreign page could send; a token is compared in constant time.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.responses import JSONResponse, RedirectResponse, Response

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz", "/login", "/static/")  # they tell nobody anything about a VM
SESSION_S = 12 * 3600.0
MOST_SESSIONS = 256
WORD_HEADER = "x-remusdb-console"  # with the word that only our own pages know
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # `no-referrer` would make a form's Origin null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Rules:
    """What the configuration says."""

    hosts: frozenset[str]
    token: str | None
    tls: bool = False
    client_cert: bool = False  # TLS lets in only those who have one

    @property
    def locked(self) -> bool:
        """Whether the token is asked for."""
        return self.token is not None and not self.client_cert

    @property
    def may_act(self) -> bool:
        """Whether anybody can do anything by this console; else it only shows."""
        return self.token is not None or self.client_cert


@dataclass
class Sessions:
    """Who has shown the token, by a word in a cookie; forgotten when the console ends."""

    word: str = field(default_factory=lambda: secrets.token_urlsafe(32))  # of our own pages
    _until: dict[str, float] = field(default_factory=dict)

    def new(self, now: float) -> str:
        """One more; the oldest makes room."""
        while len(self._until) >= MOST_SESSIONS:
            del self._until[next(iter(self._until))]
        made = secrets.token_urlsafe(32)
        self._until[made] = now + SESSION_S
        return made

    def knows(self, word: str, now: float) -> bool:
        """Whether that session was begun, and not too long ago."""
        return self._until.get(word, 0.0) > now

    def end(self, word: str) -> None:
        """Log it out."""
        self._until.pop(word, None)


@dataclass(frozen=True)
class Verdict:
    """May it pass? If not: the status, and in words why."""

    status: int = 200
    words: str = ""
    login: bool = False


PASS = Verdict()


@dataclass(frozen=True)
class Asked:
    """What a request says of itself."""

    method: str
    path: str
    host: str
    origin: str = ""
    bearer: str = ""
    session: bool = False  # its cookie is one of ours
    word: str = ""
    json: bool = False


def judge(asked: Asked, rules: Rules, word: str) -> Verdict:
    """Whether this request may pass. `word`: what our own pages send along."""
    name = host_name(asked.host)
    if name not in rules.hosts:
        return Verdict(421, f"this console does not go by the name {name!r}: `names` in console.toml has those it has")
    reads = asked.method in ("GET", "HEAD")
    if not reads and asked.path == "/login":
        return PASS if same_origin(asked, rules) else Verdict(403, "this form was not sent by a page of the console")
    if reads and (asked.path in OPEN or asked.path.startswith("/static/")):
        return PASS
    by_token = rules.token is not None and equal(asked.bearer, rules.token)
    if asked.bearer and not by_token:
        return Verdict(401, "this token is not the one of this console")
    if rules.locked and not by_token and not asked.session:
        return Verdict(401, "the token of this console is needed", login=True)
    if reads or by_token:
        return PASS if reads or asked.json else Verdict(415, "an action is sent as application/json")
    if not rules.may_act:
        return Verdict(403, "this console only shows: an action needs a token (`token_file` in console.toml)")
    if not same_origin(asked, rules) or not asked.json or not equal(asked.word, word):
        return Verdict(403, "this was not sent by a page of the console; load the page again")
    return PASS


def host_name(host: str) -> str:
    """The name in a Host header, without its port; empty for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def same_origin(asked: Asked, rules: Rules) -> bool:
    """Whether a browser says that one of our own pages sent it."""
    scheme = "https" if rules.tls else "http"
    return bool(asked.host) and asked.origin.lower() == f"{scheme}://{asked.host}".lower()


def equal(one: str, other: str) -> bool:
    """Compared in a time that tells nothing about either."""
    return hmac.compare_digest(one.encode(), other.encode())


class Guard:
    """Stands before the application."""

    def __init__(self, app: App, rules: Rules, sessions: Sessions, cookie: str) -> None:
        self._app, self._rules, self._sessions, self._cookie = app, rules, sessions, cookie

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return  # no websocket is served, and nothing is to be done at the start or the end
        asked, verdict = self._asked(scope), PASS
        verdict = judge(asked, self._rules, self._sessions.word)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode() not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        if verdict is PASS:
            return await self._app(scope, receive, send_with_headers)
        response: Response
        if verdict.login and asked.method == "GET" and "text/html" in _headers(scope).get("accept", ""):
            response = RedirectResponse(f"/login?to={quote(asked.path)}", 303)
        else:
            response = JSONResponse({"error": verdict.words}, verdict.status)
            if verdict.status == 401:
                response.headers["www-authenticate"] = 'Bearer realm="remusdb console"'
        await response(scope, receive, send_with_headers)

    def _asked(self, scope: Scope) -> Asked:
        headers = _headers(scope)
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        session = cookie_of(headers.get("cookie", ""), self._cookie)
        return Asked(
            method=scope["method"], path=scope["path"], host=headers.get("host", ""), origin=headers.get("origin", ""),
            bearer=bearer.strip() if kind.lower() == "bearer" else "",
            session=self._sessions.knows(session, time.monotonic()), word=headers.get(WORD_HEADER, ""),
            json=headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json",
        )  # fmt: skip


def cookie_of(header: str, name: str) -> str:
    """The value of that cookie; empty: there is none."""
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


def _headers(scope: Scope) -> dict[str, str]:
    """Each once. Of a name that comes twice nothing is believed."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1")
        found[name] = "" if name in found else raw_value.decode("latin-1")
    return found
