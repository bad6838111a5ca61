/* SPDX-License-Identifier: Apache-2.0 */
/* PAGEMAP_SCAN in a loop: what `PageMap.collect` does, which says what it is for. Each piece of written memory is an
 * ioctl of a microsecond; called from Python one by one they took longer than all the rest of a stop.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "scan.h"

enum { PAGE_SHIFT = 12, PAGE_BYTES = 1 << PAGE_SHIFT };

/* linux/fs.h since Linux 6.7: older headers do not have it. */
struct region {
    uint64_t start, end, categories;
};
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned;
};
#define SCAN _IOWR('f', 16, struct scan_arg)
enum { WP_MATCHING = 1, CHECK_WPASYNC = 2, WRITTEN = 2 };

struct work {
    int fd;
    uint64_t base, gap, span; /* of the block; bytes */
    const uint8_t *hot;       /* a byte a page of the block: not to be protected */
    struct region *named;     /* what was protected, and what is hot, ascending */
    uint64_t count, room;
    uint64_t low, high; /* what is to be protected next; nothing if equal */
    uint64_t full;      /* where there was no more room; 0: there was */
    uint64_t hot_pages; /* that were named */
};

/* One walk of [start, end): how many regions it found, at most `room`, and where it ended. -1 with errno.
 * The kernel's own word for the end may be too low: see PageMap._walk. */
static long walk(int fd, uint64_t flags, uint64_t start, uint64_t end, struct region *found, uint64_t room, uint64_t *at)
{
    struct scan_arg arg = {.size = sizeof arg, .flags = flags, .start = start, .end = end, .vec = (uintptr_t)found,
                           .vec_len = room, .mask = WRITTEN, .returned = WRITTEN};
    long count = ioctl(fd, SCAN, &arg);

    *at = count > 0 && found[count - 1].end > arg.walk_end ? found[count - 1].end : arg.walk_end;
    return count;
}

/* Whether these regions are ascending, and in [start, end). */
static int ordered(const struct region *found, long count, uint64_t start, uint64_t end)
{
    for (long i = 0; i < count; start = found[i++].end)
        if (found[i].start < start || found[i].end < found[i].start || found[i].end > end)
            return 0;
    return 1;
}

/* Protects what is written in [low, high), and names it. 0, or -1 with errno (0: the kernel gets nowhere). */
static int protect(struct work *work)
{
    while (work->low < work->high && !work->full) {
        uint64_t upto = work->high - work->low > work->span ? work->low + work->span : work->high, next;
        if (work->count == work->room) {
            work->full = work->low;
            break;
        }
        long took = walk(work->fd, CHECK_WPASYNC | WP_MATCHING, work->low, upto, work->named + work->count,
                         work->room - work->count, &next);
        if (took < 0)
            return -1;
        if (next <= work->low) {
            errno = 0;
            return -1;
        }
        work->count += took;
        work->low = next;
    }
    return 0;
}

/* Names pages that are hot. */
static void name(struct work *work, uint64_t start, uint64_t end)
{
    if (work->full)
        return;
    if (work->count == work->room) {
        work->full = start;
        return;
    }
    work->named[work->count++] = (struct region){start, end, WRITTEN};
    work->hot_pages += (end - start) >> PAGE_SHIFT;
}

/* One written region: what of it is hot is named, the rest is protected, together with what is near enough. */
static int add(struct work *work, uint64_t start, uint64_t end)
{
    while (start < end && !work->full) {
        const uint8_t *hot = work->hot + ((start - work->base) >> PAGE_SHIFT);
        uint64_t upto = start, is_hot = *hot;
        while (upto < end && !*hot == !is_hot)
            upto += PAGE_BYTES, hot++;
        /* Nothing that is protected together has a hot page in between. */
        if (work->low < work->high && (is_hot || start - work->high > work->gap) && protect(work) < 0)
            return -1;
        if (is_hot) {
            name(work, start, upto);
        } else {
            if (work->low >= work->high)
                work->low = start;
            work->high = upto;
        }
        start = upto;
    }
    return 0;
}

PyObject *collect(PyObject *module, PyObject *args)
{
    struct work work = {0};
    unsigned long long start, end, base, gap, span;
    Py_buffer seen, named, hot;
    PyObject *given[3], *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(args, "iKKKKKOOO:collect", &work.fd, &start, &end, &base, &gap, &span, &given[0], &given[1],
                          &given[2]))
        return NULL;
    if (get(given[0], &seen, PyBUF_WRITABLE, sizeof(struct region), "seen") < 0)
        return NULL;
    if (get(given[1], &named, PyBUF_WRITABLE, sizeof(struct region), "named") < 0)
        goto seen;
    if (get(given[2], &hot, PyBUF_SIMPLE, 0, "hot") < 0)
        goto named;
    if (!span || start < base || end < start || (start | end | base) % PAGE_BYTES ||
        (end - base) >> PAGE_SHIFT > (uint64_t)hot.len) {
        PyErr_SetString(PyExc_ValueError, "pages of a block, and a byte for each of them");
        goto hot;
    }
    work.base = base, work.gap = gap, work.span = span, work.low = work.high = start;
    work.hot = hot.buf, work.named = named.buf, work.room = named.len / sizeof(struct region);
    struct region *found = seen.buf;
    uint64_t at = start;
    int failed = 0, error = 0;
    Py_BEGIN_ALLOW_THREADS
    long count = walk(work.fd, CHECK_WPASYNC, start, end, found, seen.len / sizeof(struct region), &at);
    if (count < 0) {
        failed = -1;
    } else if (at <= start || !ordered(found, count, start, end)) {
        at = start; /* it is for the caller to look at that */
    } else {
        for (long i = 0; i < count && !failed && !work.full; i++)
            failed = add(&work, found[i].start, found[i].end);
        if (!failed)
            failed = protect(&work);
    }
    error = errno;
    Py_END_ALLOW_THREADS
    if (!failed) {
        at = work.full ? work.full : at;
        result = Py_BuildValue("KKK", (unsigned long long)work.count, (unsigned long long)at,
                               (unsigned long long)work.hot_pages);
    } else if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        PyErr_SetString(PyExc_OSError, "PAGEMAP_SCAN does not advance while it protects");
    }
hot:
    PyBuffer_Release(&hot);
named:
    PyBuffer_Release(&named);
seen:
    PyBuffer_Release(&seen);
    return result;
}
