# SPDX-License-Identifier: Apache-2.0
"""The standby's QEMU: defined, fed, proven, resumed."""
