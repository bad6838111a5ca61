# SPDX-License-Identifier: Apache-2.0
"""Trying a failover on a copy."""
