# SPDX-License-Identifier: Apache-2.0
"""Setting hosts up over SSH: what there is is looked at, what is missing is decided, and done step by step."""
