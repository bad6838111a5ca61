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

/* linux/fs.h since Linux 6.7: older headers do not have it. */
struct region {
    uint64_t start, end, categories;
};
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned;
};
#define SCAN _IOWR('f', 16, struct scan_arg)
enum { WP_MATCHING = 1, CHECK_WPASYNC = 2, WRITTEN = 2 };

/* One walk of [start, end): how many regions it found, at most `room`, and where it ended. */
static long walk(int fd, uint64_t flags, uint64_t start, uint64_t end, struct region *found, uint64_t room, uint64_t *at)
{
    struct scan_arg arg = {.size = sizeof arg, .flags = flags, .start = start, .end = end, .vec = (uintptr_t)found,
                           .vec_len = room, .mask = WRITTEN, .returned = WRITTEN};
    long count = ioctl(fd, SCAN, &arg);

    *at = arg.walk_end;
    return count;
}

static int ordered(const struct region *found, long count)
{
    for (long i = 1; i < count; i++)
        if (found[i].start < found[i - 1].end)
            return 0;
    return 1;
}

/* What was written in [*at, end), protected: the regions. Ends with *at before `end` when there is no more room, and
 * where the kernel does what is not understood: that is for the caller to look at. -1 with errno. */
static long collect_written(int fd, uint64_t *at, uint64_t end, uint64_t gap, uint64_t span, struct region *look,
                            uint64_t look_room, struct region *found, uint64_t room)
{
    uint64_t count = 0;

    while (*at < end) {
        uint64_t walked;
        long seen = walk(fd, CHECK_WPASYNC, *at, end, look, look_room, &walked);
        if (seen < 0)
            return -1;
        if (walked <= *at || !ordered(look, seen))
            return count;
        for (long i = 0; i < seen;) {
            uint64_t low = look[i].start, high = look[i].end;
            for (i++; i < seen && look[i].start - high <= gap; i++)
                high = look[i].end;
            while (low < high) {
                uint64_t upto = high - low > span ? low + span : high, next;
                if (count == room) {
                    *at = low;
                    return count;
                }
                long took = walk(fd, CHECK_WPASYNC | WP_MATCHING, low, upto, found + count, room - count, &next);
                if (took < 0)
                    return -1;
                count += took;
                if (next <= low) {
                    *at = low;
                    return count;
                }
                low = next;
            }
        }
        *at = walked;
    }
    return count;
}

PyObject *collect(PyObject *module, PyObject *args)
{
    int fd;
    unsigned long long start, end, gap, span;
    Py_buffer look, found;
    PyObject *given[2], *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(args, "iKKKKOO:collect", &fd, &start, &end, &gap, &span, &given[0], &given[1]))
        return NULL;
    if (get(given[0], &look, PyBUF_WRITABLE, sizeof(struct region), "look") < 0)
        return NULL;
    if (get(given[1], &found, PyBUF_WRITABLE, sizeof(struct region), "found") < 0)
        goto look;
    if (!span) {
        PyErr_SetString(PyExc_ValueError, "a span of nothing");
        goto found;
    }
    long count;
    int error;
    uint64_t at = start;
    Py_BEGIN_ALLOW_THREADS
    count = collect_written(fd, &at, end, gap, span, look.buf, look.len / sizeof(struct region), found.buf,
                            found.len / sizeof(struct region));
    error = errno;
    Py_END_ALLOW_THREADS
    if (count < 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        result = Py_BuildValue("lK", count, (unsigned long long)at);
    }
found:
    PyBuffer_Release(&found);
look:
    PyBuffer_Release(&look);
    return result;
}
