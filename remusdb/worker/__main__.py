# SPDX-License-Identifier: Apache-2.0
"""Entry of the process: `python -P -m remusdb.worker FD SOCKET`."""

from remusdb.worker.commands import main

if __name__ == "__main__":
    main()
