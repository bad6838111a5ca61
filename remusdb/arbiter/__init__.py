# SPDX-License-Identifier: Apache-2.0
"""The third party: an etcd that keeps one record a VM, and lets one host at a time change it."""
