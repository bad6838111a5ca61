# SPDX-License-Identifier: Apache-2.0
"""A VM's disks on the primary: every write is logged, and told apart by epoch."""
