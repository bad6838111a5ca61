# SPDX-License-Identifier: Apache-2.0
"""Taking a running VM's state: pages, device state, clock, all of one instant."""
