# SPDX-License-Identifier: Apache-2.0
"""The command line: a verb a file, its words and what it does side by side."""
