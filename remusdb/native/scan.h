/* SPDX-License-Identifier: Apache-2.0 */
/* What kernels.c and scan.c know of each other. Python.h comes first. */
#ifndef REMUSDB_SCAN_H
#define REMUSDB_SCAN_H

/* The buffer of `from`, of at least so many bytes; -1 with ValueError. */
int get(PyObject *from, Py_buffer *to, int flags, Py_ssize_t bytes, const char *what);
PyObject *collect(PyObject *module, PyObject *args);

#endif
