# SPDX-License-Identifier: Apache-2.0
"""Two hosts that are VMs of their own, with Debian's kernel, systemd and AppArmor: `make machines`."""
