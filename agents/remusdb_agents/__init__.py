# SPDX-License-Identifier: Apache-2.0
"""Agents of remusdb: the backup host's."""
