# SPDX-License-Identifier: Apache-2.0
"""A VM that another host owns now: put away, its disks kept aside."""
