# SPDX-License-Identifier: Apache-2.0
"""What decides, as values: no thread, socket, clock or file."""
