# SPDX-License-Identifier: Apache-2.0
"""`remusdb console`: pages, metrics and health of this machine's VMs over HTTP, by its control sockets alone."""
