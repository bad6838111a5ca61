# SPDX-License-Identifier: Apache-2.0
"""Commit protection: which frames may leave before the backup has their epoch. Pure: no socket, clock or file."""
