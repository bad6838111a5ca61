# SPDX-License-Identifier: Apache-2.0
"""TLS between hosts, with frames on it."""
