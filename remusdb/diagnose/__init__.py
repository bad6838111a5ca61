# SPDX-License-Identifier: Apache-2.0
"""`remusdb diagnose`: what a bug report about a VM needs, in one file, without secrets."""
