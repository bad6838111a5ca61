# SPDX-License-Identifier: Apache-2.0
"""What a protected VM may have: the list of what is harmless."""
