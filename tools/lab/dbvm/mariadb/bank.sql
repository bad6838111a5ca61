-- SPDX-License-Identifier: Apache-2.0
-- Read by `mariadbd --bootstrap`: one statement a line. It knows no users until it is told to read them.
CREATE DATABASE bank;
USE bank;
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL) ENGINE=InnoDB;
INSERT INTO accounts SELECT seq, 1000 FROM seq_1_to_1000;
-- One row for each transaction of each client connection.
CREATE TABLE ledger (client int, seq bigint, amount bigint NOT NULL, PRIMARY KEY (client, seq)) ENGINE=InnoDB;
FLUSH PRIVILEGES;
CREATE USER bank;
GRANT ALL PRIVILEGES ON *.* TO bank;
