# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: every fault, in every phase of a protected VM's life, and what became of it.

python -m tools.matrix [--cells all|ci|FAULT/PHASE,...]
"""
