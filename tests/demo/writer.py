#!/usr/bin/env python3
"""writer.py bank DB COUNT | files DIR | check DB LEAST MOST

bank: an SQLite database under constant writing. Each transaction moves money from one of a thousand
accounts to another, enters it in two tables, and counts. COUNT, a file, has the number of the last
transaction that was committed. check: all that must hold for a copy of it, whenever it was taken.
files: files that come, grow, change in place, change names and go. Both end at SIGTERM."""
import os
import random
import signal
import sqlite3
import sys
import time

ACCOUNTS, START = 1000, 1000
stop = False


def on_signal(*_):
    global stop
    stop = True


def bank(path, count_path):
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("""
        PRAGMA synchronous = FULL;
        BEGIN;
        CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
        CREATE TABLE debit (n INTEGER PRIMARY KEY, account INTEGER, amount INTEGER, memo BLOB);
        CREATE TABLE credit (n INTEGER PRIMARY KEY, account INTEGER, amount INTEGER, memo BLOB);
        CREATE TABLE counter (n INTEGER NOT NULL);
        INSERT INTO counter VALUES (0);""")
    db.executemany("INSERT INTO account VALUES (?, ?)", ((i, START) for i in range(ACCOUNTS)))
    db.execute("COMMIT")
    count = os.open(count_path, os.O_CREAT | os.O_WRONLY)
    n = 0
    while not stop:
        n += 1
        payer, payee = random.sample(range(ACCOUNTS), 2)
        amount, memo = random.randrange(1, 100), random.randbytes(200)
        db.execute("BEGIN")
        db.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, payer))
        db.execute("INSERT INTO debit VALUES (?, ?, ?, ?)", (n, payer, amount, memo))
        db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, payee))
        db.execute("INSERT INTO credit VALUES (?, ?, ?, ?)", (n, payee, amount, memo))
        db.execute("UPDATE counter SET n = ?", (n,))
        db.execute("COMMIT")
        os.pwrite(count, b"%d\n" % n, 0)
        time.sleep(0.01)
    db.close()


def files(directory):
    os.mkdir(directory)
    names, n = [], 0
    while not stop:
        n += 1
        what = random.random()
        if len(names) < 40 or what < 0.3 and len(names) < 100:
            name = f"{directory}/{n}"
            with open(name, "wb") as f:
                f.write(random.randbytes(random.randrange(1, 50000)))
            names.append(name)
        elif what < 0.7:
            with open(random.choice(names), "r+b") as f:
                f.seek(random.randrange(0, 50000))
                f.write(random.randbytes(random.randrange(1, 20000)))
                f.flush()
                os.fsync(f.fileno())
        elif what < 0.85:
            i = random.randrange(len(names))
            os.rename(names[i], f"{directory}/{n}")
            names[i] = f"{directory}/{n}"
        else:
            os.unlink(names.pop(random.randrange(len(names))))
        time.sleep(0.05)


def check(path, least, most):
    db = sqlite3.connect(path)

    def one(sql):
        return db.execute(sql).fetchone()[0]

    bad = []
    if one("PRAGMA integrity_check") != "ok":
        bad.append("integrity_check")
    n = one("SELECT n FROM counter")
    for table in "debit", "credit":
        if one(f"SELECT count(*) FROM {table}") != n or one(f"SELECT max(n) FROM {table}") != n:
            bad.append(f"{table} has not {n} entries")
    if one("SELECT sum(amount) FROM debit") != one("SELECT sum(amount) FROM credit"):
        bad.append("debits and credits differ")
    if one("SELECT sum(balance) FROM account") != ACCOUNTS * START:
        bad.append("money was lost or made")
    balance = {i: START for i in range(ACCOUNTS)}
    for table, sign in ("debit", -1), ("credit", 1):
        for account, amount in db.execute(f"SELECT account, amount FROM {table}"):
            balance[account] += sign * amount
    if balance != dict(db.execute("SELECT id, balance FROM account")):
        bad.append("a balance is not the sum of its entries")
    if not least <= n <= most:
        bad.append(f"{n} transactions; {least} were committed before the backup, {most} after it")
    print(f"integrity_check, sums; {n} transactions ({least} before the backup, {most} after it)")
    if bad:
        sys.exit("; ".join(bad))


signal.signal(signal.SIGTERM, on_signal)
if sys.argv[1] == "bank":
    bank(*sys.argv[2:4])
elif sys.argv[1] == "files":
    files(sys.argv[2])
else:
    check(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
