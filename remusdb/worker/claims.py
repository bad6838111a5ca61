# SPDX-License-Identifier: Apache-2.0
"""What a session asks of the arbiter. What its answers mean is decided in `core/`."""

from __future__ import annotations

import logging
import time

from remusdb.arbiter.arbiter import Arbiter
from remusdb.core.ownership import Claim, Rule, Verdict, go_solo, open_session
from remusdb.core.primary_effects import AskArbiter
from remusdb.core.terms import following
from remusdb.errors import ArbiterUnreachable

log = logging.getLogger(__name__)

SESSION_TRIES = 5
ASK_AGAIN_S = 0.25


def claim_session(arbiter: Arbiter, vm: str, host: str, term: int) -> Claim:
    """Have the arbiter know of this session before anything of it counts: WON or LOST. ArbiterUnreachable."""
    rule = open_session(host, term)
    for _ in range(SESSION_TRIES):
        claim = arbiter.claim(vm, rule)
        if claim.verdict in (Verdict.WON, Verdict.LOST):
            return claim
        time.sleep(ASK_AGAIN_S)
    raise ArbiterUnreachable("the arbiter does not answer: no session begins", hint="is etcd running?")


def claim_alone(arbiter: Arbiter, vm: str, host: str, question: AskArbiter) -> Claim:
    """One try to have the VM for this host alone. Whatever fails: UNKNOWN, the question may have been seen."""
    rule: Rule = go_solo(host, question.term)
    if question.given_back:
        rule = open_session(host, following(following(question.term)))
    try:
        return arbiter.claim(vm, rule)
    except Exception as exc:  # task boundary: nobody else asks for this session
        log.exception("the arbiter cannot be asked")
        return Claim(Verdict.UNKNOWN, None, str(exc))
