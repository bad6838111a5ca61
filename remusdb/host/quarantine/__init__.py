# SPDX-License-Identifier: Apache-2.0
"""A VM that another host owns now: shut off, its disks moved aside."""
