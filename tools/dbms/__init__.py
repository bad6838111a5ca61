# SPDX-License-Identifier: Apache-2.0
"""The database systems that the lab's VM may have, and all that differs between them."""

from tools.dbms.base import Connection, Cursor, Dbms
from tools.dbms.mariadb import MARIADB
from tools.dbms.postgresql import POSTGRESQL

BY_KEY = {dbms.key: dbms for dbms in (POSTGRESQL, MARIADB)}

__all__ = ["BY_KEY", "MARIADB", "POSTGRESQL", "Connection", "Cursor", "Dbms"]
