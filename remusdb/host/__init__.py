# SPDX-License-Identifier: Apache-2.0
"""The daemon of a primary: which VMs are protected, by which workers."""
