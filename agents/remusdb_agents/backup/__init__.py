# SPDX-License-Identifier: Apache-2.0
"""The backup host's agent."""
