# SPDX-License-Identifier: Apache-2.0
"""What develops and shows the product; nothing here is installed with it."""
