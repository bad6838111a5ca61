# SPDX-License-Identifier: Apache-2.0
"""remusdb: high availability for a database VM, without touching the database."""

__version__ = "0.1.0"
