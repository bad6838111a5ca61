# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the lab, done on purpose: processes that die or stand still, and links that fail."""

from tools.faults.link import LinkFault
from tools.faults.process import Stopped, find, kill, stop

__all__ = ["LinkFault", "Stopped", "find", "kill", "stop"]
