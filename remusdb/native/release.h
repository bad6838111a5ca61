/* SPDX-License-Identifier: Apache-2.0 */
#ifndef REMUSDB_RELEASE_H
#define REMUSDB_RELEASE_H

PyObject *skip_rows(PyObject *module, PyObject *args);
PyObject *skip_messages(PyObject *module, PyObject *args);

#endif
