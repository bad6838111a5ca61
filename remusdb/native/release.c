/* SPDX-License-Identifier: Apache-2.0 */
/* Passing over rows of a database's answers, many at a time. core/release/skip.py says what this does and has the same in
 * Python, which the tests hold against it. Sizes in the data are a guest's: each is checked before it is added. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>

#include "release.h"

enum { MY_HEADER = 4, MY_WHOLE = 0xFFFFFF, MY_ENDS = 0xFE, PG_HEADER = 5 };

PyObject *skip_rows(PyObject *module, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t at, end;
    unsigned char number;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*nb:skip_rows", &data, &at, &number))
        return NULL;
    const uint8_t *in = data.buf;
    for (end = data.len; at >= 0 && end - at > MY_HEADER; number++) {
        Py_ssize_t size = in[at] | in[at + 1] << 8 | in[at + 2] << 16;
        if (!size || size == MY_WHOLE || size > end - at - MY_HEADER || in[at + 3] != number ||
            in[at + MY_HEADER] >= MY_ENDS)
            break;
        at += MY_HEADER + size;
    }
    PyBuffer_Release(&data);
    return Py_BuildValue("nb", at, number);
}

PyObject *skip_messages(PyObject *module, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t at, end;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*n:skip_messages", &data, &at))
        return NULL;
    const uint8_t *in = data.buf;
    for (end = data.len; at >= 0 && end - at >= PG_HEADER && (in[at] == 'D' || in[at] == 'd');) {
        uint32_t size = (uint32_t)in[at + 1] << 24 | in[at + 2] << 16 | in[at + 3] << 8 | in[at + 4];
        if (size < 4 || size > (uint64_t)(end - at - 1))
            break;
        at += 1 + (Py_ssize_t)size;
    }
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(at);
}
