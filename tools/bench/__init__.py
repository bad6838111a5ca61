# SPDX-License-Identifier: Apache-2.0
"""What protection costs a database: `python -m tools.bench`."""
