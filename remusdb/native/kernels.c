/* SPDX-License-Identifier: Apache-2.0 */
/* The page kernels: one pass over pages where numpy needs four. core/pagework.py says what they do and has the same in
 * numpy, which the tests hold against these.
 *
 * Built for CPython's stable ABI (3.11 and later). The GIL is released while pages are worked on; the buffers' owners
 * keep their hands off them for so long. Each size is checked here, whatever the caller checked: nothing reads or
 * writes outside of a buffer.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "release.h"
#include "scan.h"

enum { PAGE_BYTES = 4096, LINE_BYTES = 64, LINES = PAGE_BYTES / LINE_BYTES, LINE_WORDS = LINE_BYTES / 8 };
enum { SAME = 0, DATA = 1, ZERO = 2 }; /* as in core/pagework.py */

/* One page: the XOR of each line that changed goes to `out`, which has room for a page; `old` becomes `new`. */
static uint64_t page_delta(const uint64_t *new, uint64_t *old, uint64_t *out, uint64_t *content)
{
    uint64_t mask = 0, seen = 0;

    for (int line = 0; line < LINES; line++, new += LINE_WORDS, old += LINE_WORDS) {
        uint64_t xor[LINE_WORDS], changed = 0;
        for (int i = 0; i < LINE_WORDS; i++) {
            xor[i] = new[i] ^ old[i];
            changed |= xor[i];
            seen |= new[i];
        }
        if (changed) { /* not the others: the shadow of a page that was always zero is never even allocated */
            memcpy(out, xor, LINE_BYTES);
            memcpy(old, new, LINE_BYTES);
            out += LINE_WORDS;
            mask |= UINT64_C(1) << line;
        }
    }
    *content = seen;
    return mask;
}

int get(PyObject *from, Py_buffer *to, int flags, Py_ssize_t bytes, const char *what)
{
    if (PyObject_GetBuffer(from, to, flags) < 0)
        return -1;
    if (to->len < bytes || (uintptr_t)to->buf % 8) {
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes, %zd are needed, at a multiple of 8", what, to->len, bytes);
        PyBuffer_Release(to);
        return -1;
    }
    return 0;
}

static PyObject *delta(PyObject *module, PyObject *args)
{
    PyObject *given[6];
    Py_buffer numbers, content, shadow, masks, lines, kinds;
    PyObject *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOO:delta", &given[0], &given[1], &given[2], &given[3], &given[4], &given[5]))
        return NULL;
    if (get(given[0], &numbers, PyBUF_SIMPLE, 0, "numbers") < 0)
        return NULL;
    Py_ssize_t count = numbers.len / 8;
    if (count > PY_SSIZE_T_MAX / PAGE_BYTES) {
        PyErr_SetString(PyExc_ValueError, "too many pages");
        goto numbers;
    }
    if (get(given[1], &content, PyBUF_SIMPLE, count * PAGE_BYTES, "content") < 0)
        goto numbers;
    if (get(given[2], &shadow, PyBUF_WRITABLE, 0, "shadow") < 0)
        goto content;
    if (get(given[3], &masks, PyBUF_WRITABLE, count * 8, "masks") < 0)
        goto shadow;
    if (get(given[4], &lines, PyBUF_WRITABLE, count * PAGE_BYTES, "lines") < 0)
        goto masks;
    if (get(given[5], &kinds, PyBUF_WRITABLE, count, "kinds") < 0)
        goto lines;

    const int64_t *number = numbers.buf;
    const int64_t pages = shadow.len / PAGE_BYTES;
    for (Py_ssize_t i = 0; i < count; i++)
        if (number[i] < 0 || number[i] >= pages) {
            PyErr_Format(PyExc_ValueError, "page %lld of %lld", (long long)number[i], (long long)pages);
            goto kinds;
        }
    Py_ssize_t kept = 0, filled = 0;
    Py_BEGIN_ALLOW_THREADS
    uint64_t *out = lines.buf, *mask_out = masks.buf;
    uint8_t *kind = kinds.buf;
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t seen;
        uint64_t mask = page_delta((const uint64_t *)content.buf + i * (PAGE_BYTES / 8),
                                   (uint64_t *)shadow.buf + number[i] * (PAGE_BYTES / 8), out + filled * LINE_WORDS, &seen);
        kind[i] = !mask ? SAME : seen ? DATA : ZERO;
        if (kind[i] == DATA) {
            mask_out[kept++] = mask;
            filled += __builtin_popcountll(mask);
        }
    }
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("nn", kept, filled);
kinds:
    PyBuffer_Release(&kinds);
lines:
    PyBuffer_Release(&lines);
masks:
    PyBuffer_Release(&masks);
shadow:
    PyBuffer_Release(&shadow);
content:
    PyBuffer_Release(&content);
numbers:
    PyBuffer_Release(&numbers);
    return result;
}

static PyObject *patch(PyObject *module, PyObject *args)
{
    PyObject *given[3], *result = NULL;
    Py_buffer masks, lines, pages;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:patch", &given[0], &given[1], &given[2]))
        return NULL;
    if (get(given[0], &masks, PyBUF_SIMPLE, 0, "masks") < 0)
        return NULL;
    const uint64_t *mask = masks.buf;
    Py_ssize_t count = masks.len / 8, filled = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        filled += __builtin_popcountll(mask[i]);
    if (count > PY_SSIZE_T_MAX / PAGE_BYTES) {
        PyErr_SetString(PyExc_ValueError, "too many pages");
        goto masks;
    }
    if (get(given[1], &lines, PyBUF_SIMPLE, filled * LINE_BYTES, "lines") < 0)
        goto masks;
    if (get(given[2], &pages, PyBUF_WRITABLE, count * PAGE_BYTES, "pages") < 0)
        goto lines;
    Py_BEGIN_ALLOW_THREADS
    const uint64_t *line = lines.buf;
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t *page = (uint64_t *)pages.buf + i * (PAGE_BYTES / 8);
        for (uint64_t left = mask[i]; left; left &= left - 1, line += LINE_WORDS) {
            uint64_t *at = page + __builtin_ctzll(left) * LINE_WORDS;
            for (int j = 0; j < LINE_WORDS; j++)
                at[j] ^= line[j];
        }
    }
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
    PyBuffer_Release(&pages);
lines:
    PyBuffer_Release(&lines);
masks:
    PyBuffer_Release(&masks);
    return result;
}

static PyMethodDef methods[] = {
    {"delta", delta, METH_VARARGS, "See pagework.delta."},
    {"patch", patch, METH_VARARGS, "See pagework.patch."},
    {"collect", collect, METH_VARARGS, "See PageMap.collect."},
    {"skip_rows", skip_rows, METH_VARARGS, "See release/skip.py."},
    {"skip_messages", skip_messages, METH_VARARGS, "See release/skip.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "kernels", .m_doc = "Page kernels.", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_kernels(void) { return PyModuleDef_Init(&module); }
