# SPDX-License-Identifier: Apache-2.0
"""A VM as libvirt and QEMU have it."""
