/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Says on the wire which replies may be lost with their transaction: while a session is inside a transaction, its packets
 * carry a DSCP value (`remusdb_mark.dscp`), which remusdb's gate lets pass at once under `release = "commit"`.
 *
 * Owns the type-of-service byte of one backend's socket. Invariant: a byte that the server wrote outside of a transaction,
 * or while one ends or begins, is never sent in a marked packet, nor sent again in one. So
 *
 *   marked    at the start of a statement, in a transaction block that is not aborted, when nothing waits in the backend's
 *             buffer and the client has acknowledged every byte that was sent (SIOCOUTQ is 0)
 *   unmarked  before a transaction commits, is prepared or is rolled back: what is written afterwards finds no mark, and
 *             what the kernel has not sent by then loses it, which only makes it wait
 *
 * The kernel reads the byte whenever it sends a packet, also one that it sends again. Needs nothing of the database: no
 * table, no CREATE EXTENSION; `shared_preload_libraries = 'remusdb_mark'` is all. PostgreSQL 15 to 17.
 */
#include "postgres.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <sys/ioctl.h>

#include "access/xact.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "parser/analyze.h"
#include "replication/walsender.h"
#include "tcop/utility.h"
#include "utils/guc.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 180000
#error "remusdb_mark is for PostgreSQL 15 to 17"
#endif

PG_MODULE_MAGIC;

void		_PG_init(void);

#define DSCP_MAX 63				/* six bits, above two of congestion notification: RFC 2474 */
#define DSCP_SHIFT 2

static int	dscp = 0;
static bool marked = false;
static bool ending = false;		/* a commit runs, in which other extensions may still run statements */
static post_parse_analyze_hook_type next_analyze = NULL;
static ExecutorStart_hook_type next_start = NULL;
static ProcessUtility_hook_type next_utility = NULL;

/* The client's socket, or -1: a background worker, a walsender, a unix socket. */
static int
client_socket(void)
{
	if (MyProcPort == NULL || am_walsender)
		return -1;
	if (MyProcPort->laddr.addr.ss_family != AF_INET && MyProcPort->laddr.addr.ss_family != AF_INET6)
		return -1;
	return MyProcPort->sock;
}

/* True once the kernel has taken it. On an IPv6 socket both are set: it may carry mapped IPv4. */
static bool
set_tos(int fd, int value)
{
	if (MyProcPort->laddr.addr.ss_family == AF_INET6 &&
		setsockopt(fd, IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof value) != 0)
		return false;
	if (setsockopt(fd, IPPROTO_IP, IP_TOS, &value, sizeof value) != 0)
		return MyProcPort->laddr.addr.ss_family == AF_INET6;
	return true;
}

static void
mark_if_inside(void)
{
	int			fd,
				unacknowledged;

	if (marked || ending || dscp == 0 || !IsTransactionBlock() || IsAbortedTransactionBlockState())
		return;
	fd = client_socket();
	if (fd < 0 || pq_is_send_pending())
		return;
	if (ioctl(fd, SIOCOUTQ, &unacknowledged) != 0 || unacknowledged != 0)
		return;
	marked = set_tos(fd, dscp << DSCP_SHIFT);
	if (!marked)
		set_tos(fd, 0);			/* one of the two may have been taken */
}

static void
unmark(void)
{
	int			fd = client_socket();

	if (!marked || fd < 0)
		return;
	if (!set_tos(fd, 0))
		ereport(FATAL,
				(errmsg("remusdb_mark: the mark of this session's packets cannot be taken away: %m"),
				 errdetail("The session ends, so that no reply to a COMMIT leaves unprotected.")));
	marked = false;
}

static void
at_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			ending = true;
			unmark();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			ending = false;
			break;
		case XACT_EVENT_ABORT:
			ending = false;
			unmark();
			break;
		default:
			break;
	}
}

static void
analyzed(ParseState *pstate, Query *query, JumbleState *jstate)
{
	mark_if_inside();
	if (next_analyze)
		next_analyze(pstate, query, jstate);
}

static void
started(QueryDesc *query, int flags)
{
	mark_if_inside();
	if (next_start)
		next_start(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

static void
utility(PlannedStmt *statement, const char *text, bool read_only, ProcessUtilityContext context, ParamListInfo params,
		QueryEnvironment *environment, DestReceiver *receiver, QueryCompletion *completion)
{
	mark_if_inside();
	if (next_utility)
		next_utility(statement, text, read_only, context, params, environment, receiver, completion);
	else
		standard_ProcessUtility(statement, text, read_only, context, params, environment, receiver, completion);
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errmsg("remusdb_mark must be loaded by shared_preload_libraries"),
				 errhint("Add it to shared_preload_libraries in postgresql.conf, and restart the server.")));
	DefineCustomIntVariable("remusdb_mark.dscp",
							"DSCP value of packets that may be lost with the transaction they belong to; 0: none.",
							"The same number as in this VM's section of remusdb's host.toml. A multiple of 8 keeps Linux's order of packets.",
							&dscp, 0, 0, DSCP_MAX, PGC_SIGHUP, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("remusdb_mark");
	RegisterXactCallback(at_end, NULL);
	next_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = analyzed;
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = started;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility;
}
