# SPDX-License-Identifier: Apache-2.0
"""What is released: a wheel, and a .deb for Debian 12 and 13."""
