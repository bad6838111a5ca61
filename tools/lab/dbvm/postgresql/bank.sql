-- SPDX-License-Identifier: Apache-2.0
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO accounts SELECT n, 1000 FROM generate_series(1, 1000) AS n;
-- One row for each transaction of each client connection.
CREATE TABLE ledger (client int, seq bigint, amount bigint NOT NULL, PRIMARY KEY (client, seq));
CREATE EXTENSION amcheck;
VACUUM (FREEZE, ANALYZE);
CHECKPOINT;
