# SPDX-License-Identifier: Apache-2.0
"""What leaves a VM waits for its epoch here: gates, taps, qdiscs, announcements."""
