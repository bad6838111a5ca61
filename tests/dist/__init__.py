# SPDX-License-Identifier: Apache-2.0
"""The .deb in clean Debians. Minutes, most of them apt's the first time: `make dist-test`."""
