# SPDX-License-Identifier: Apache-2.0
"""What tools/lab/mariasays.py asks: whatever might look like a part of a transaction and is none, and what is one."""

from __future__ import annotations

from tools.lab.mariasays import DEPRECATE_EOF, SESSION_TRACK

_CHAIN = "COMMIT; START TRANSACTION;"
_PROCEDURES = {
    "p_update": f"BEGIN {_CHAIN} UPDATE a SET v = v + 1; END",
    "p_insert": f"BEGIN {_CHAIN} INSERT INTO a (v) VALUES (1), (2); END",
    "p_delete": f"BEGIN {_CHAIN} DELETE FROM a LIMIT 1; END",
    "p_select": f"BEGIN {_CHAIN} SELECT * FROM a LIMIT 1; END",
    "p_copy": f"BEGIN {_CHAIN} INSERT INTO a (v) SELECT v FROM a LIMIT 2; END",
    "p_said": f"BEGIN {_CHAIN} EXECUTE IMMEDIATE 'UPDATE a SET v = v + 1'; END",
    "p_handler": "BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION UPDATE a SET v = 7; "
    f"{_CHAIN} SIGNAL SQLSTATE '45000'; END",
    "p_alter": "BEGIN ALTER TABLE c FORCE; START TRANSACTION; UPDATE a SET v = v + 1; END",
    "p_nested": "CALL p_update()",
}
# As they are, each in a transaction that has changed something: none may leave early.
ENDS = (
    *("COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "START TRANSACTION", "SET autocommit = 1", "LOCK TABLES a WRITE"),
    *(f"CALL {name}()" for name in _PROCEDURES),
    *("prepared: CALL p_update()", "prepared: CALL p_insert()", "prepared: CALL p_select()"),
    "EXECUTE IMMEDIATE 'CALL p_update()'",
    f"BEGIN NOT ATOMIC {_CHAIN} UPDATE a SET v = v + 1; END",
    f"BEGIN NOT ATOMIC {_CHAIN} SELECT 1; END",
    "IF 1 THEN COMMIT AND CHAIN; UPDATE a SET v = v + 1; END IF",
    *("UPDATE a SET v = v + 1; COMMIT; BEGIN; UPDATE a SET v = v + 1", "COMMIT; BEGIN; SELECT 1"),
    *("ANALYZE TABLE a", "OPTIMIZE TABLE a", "CHECK TABLE a", "REPAIR TABLE a", "ANALYZE TABLE a PERSISTENT FOR ALL"),
    *("CREATE OR REPLACE TABLE d SELECT * FROM a", "ALTER TABLE c FORCE, ALGORITHM = COPY", "TRUNCATE c"),
    *("GRANT SELECT ON t.* TO q", "FLUSH TABLES", "COMMIT", "ROLLBACK", "prepared: COMMIT AND CHAIN"),
    "SET STATEMENT max_statement_time = 5 FOR COMMIT AND CHAIN",
)
# As they are, in a transaction: each is a part of it and may leave.
PARTS = (
    *("UPDATE a SET v = v + 1", "INSERT INTO a (v) VALUES (1), (2)", "INSERT INTO a (v) SELECT v FROM a LIMIT 2"),
    *("SELECT 1", "SELECT * FROM a", "INSERT INTO a (v) VALUES (9) RETURNING k", "SHOW TABLES", "EXPLAIN SELECT 1"),
    *("SELECT * FROM a WHERE k < 0", "SELECT REPEAT('x', 400), '', NULL", "ANALYZE UPDATE a SET v = v + 1"),
    *("REPLACE INTO a VALUES (1, 5), (2, 6)", "INSERT INTO a (v) VALUES (1)"),
)
# In a transaction too, and they wait all the same: nothing tells them from others, or what they answer says too little.
WAITS = ("DELETE FROM a LIMIT 1", "SAVEPOINT x", "DO 1", "SELECT 1 FROM nowhere")
MADE = (
    "CREATE DATABASE t; USE t; CREATE USER q; CREATE TABLE a (k INT AUTO_INCREMENT PRIMARY KEY, v INT)",
    *("INSERT INTO t.a (v) VALUES (1), (2), (3)", "CREATE TABLE t.c SELECT * FROM t.a"),
    *(f"CREATE PROCEDURE t.{name}() {body}" for name, body in _PROCEDURES.items()),
)
USE = "USE t"
BEGIN = ("SET autocommit = %d", "START TRANSACTION", "UPDATE a SET v = v + 1 ORDER BY k DESC LIMIT 1")
CONNECTIONS = [
    (f"{end}, autocommit {auto}, {name}", more, [step % auto if "%" in step else step for step in BEGIN] + [end])
    for name, more in (("classic", 0), ("without EOF", DEPRECATE_EOF | SESSION_TRACK))
    for auto in (1, 0)
    for end in (*ENDS, *PARTS, "prepared: SELECT * FROM a", "prepared: UPDATE a SET v = v + 1", *WAITS)
]
