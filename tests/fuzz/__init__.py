# SPDX-License-Identifier: Apache-2.0
"""Every parser of bytes that others wrote, fed with mutations of what the project itself writes (`make fuzz`)."""
