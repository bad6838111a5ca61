# SPDX-License-Identifier: Apache-2.0
"""One VM's process on its primary host: `python -m remusdb.worker`. It may block in libvirt."""
