# SPDX-License-Identifier: Apache-2.0
"""Whether a VM can be protected, and what its backup would lack."""
