# SPDX-License-Identifier: Apache-2.0
"""What runs away from the protected VM: the backup host's agent."""
