// The ledger's life: opening, transactions, epochs and facts. What it stores is in unit.c (groups, units,
// pieces), step.c (PREPARE, COMMIT, weights, checkpoints, evaluations), recover.c (reading back), audit.c and
// show.c. One thread owns a struct ledger.
//
// SQLite as used here: WAL; one connection writes and checkpoints (releases up to 3.51.2 can corrupt the WAL
// when one connection writes while another checkpoints); no mmap; readers open read-only and never
// checkpoint.
#include "ledger/ledger.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "ledger/db.h"
#include "ledger/reader.h"

const char *unit_state_name(enum unit_state s)
{
    static const char *const names[] = {
#define X(id, name) name,
        UNIT_STATES(X)
#undef X
    };
    return (unsigned)s < UNIT_STATE_COUNT ? names[s] : "unknown";
}

const char *drop_reason_name(enum drop_reason r)
{
    static const char *const names[] = {
#define X(id, name) name,
        DROP_REASONS(X)
#undef X
    };
    return (unsigned)r < DROP_REASON_COUNT ? names[r] : "unknown";
}

static enum status exec_plain(struct ledger *l, const char *sql, struct error *err)
{
    if (sqlite3_exec(l->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return db_error(l, err, sql);
    return STATUS_OK;
}

static enum status open_db(const char *run_dir, int flags, const struct clock *clock, struct ledger **ret,
                           struct error *err)
{
    struct ledger *l = mem_must(1, sizeof *l);
    l->clock = clock;
    enum status rc = file_join(l->path, sizeof l->path, run_dir, "ledger.sqlite", err);
    if (rc) {
        free(l);
        return rc;
    }
    if (sqlite3_open_v2(l->path, &l->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
        rc = error_set(err, STATUS_IO, "opening ledger %s: %s", l->path,
                       l->db ? sqlite3_errmsg(l->db) : "out of memory");
        ledger_close(l);
        return rc;
    }
    sqlite3_busy_timeout(l->db, 10000);
    *ret = l;
    return STATUS_OK;
}

static enum status check_version(struct ledger *l, struct error *err)
{
    char *have = NULL;
    enum status rc = ledger_meta_get(l, "schema", &have, err);
    if (rc)
        return error_prefix(err, "%s is not a ledger of this program", l->path);
    if (strcmp(have, LEDGER_SCHEMA_VERSION) != 0)
        rc = error_set(err, STATUS_UNSUPPORTED, "%s has ledger schema %s, this program reads %s", l->path,
                       have, LEDGER_SCHEMA_VERSION);
    free(have);
    return rc;
}

enum status ledger_open(const char *run_dir, const struct clock *clock, struct ledger **ret,
                        struct error *err)
{
    struct ledger *l;
    char *have = NULL;
    enum status rc = open_db(run_dir, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, clock, &l, err);
    if (rc)
        return rc;
    if ((rc =
             exec_plain(l,
                        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;"
                        "PRAGMA temp_store=MEMORY; PRAGMA cache_size=-65536; PRAGMA wal_autocheckpoint=4000;",
                        err)) ||
        (rc = exec_plain(l, ledger_schema, err)))
        goto out;
    struct error none;
    rc = ledger_meta_get(l, "schema", &have, &none);
    if (rc == STATUS_NOTFOUND) {
        if ((rc = ledger_begin(l, err)) || (rc = ledger_meta_set(l, "schema", LEDGER_SCHEMA_VERSION, err)) ||
            (rc = ledger_commit(l, true, err)))
            goto out;
    } else {
        free(have);
        if ((rc = check_version(l, err)))
            goto out;
    }
    *ret = l;
    l = NULL;
out:
    ledger_close(l);
    return rc;
}

enum status ledger_open_readonly(const char *run_dir, struct ledger **ret, struct error *err)
{
    struct ledger *l;
    char path[1100];
    enum status rc = file_join(path, sizeof path, run_dir, "ledger.sqlite", err);
    if (rc)
        return rc;
    if (!file_exists(path))
        return error_set(err, STATUS_NOTFOUND, "%s: no ledger there; is %s a run directory?", path, run_dir);
    if ((rc = open_db(run_dir, SQLITE_OPEN_READONLY, clock_system(), &l, err)))
        return rc;
    sqlite3_db_config(l->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    l->readonly = true;
    if ((rc = check_version(l, err))) {
        ledger_close(l);
        return rc;
    }
    *ret = l;
    return STATUS_OK;
}

void ledger_close(struct ledger *l)
{
    if (!l)
        return;
    ledger_rollback(l);
    for (int i = 0; i < l->n_statements; i++)
        sqlite3_finalize(l->statements[i].st);
    sqlite3_close(l->db);
    free(l);
}

enum status ledger_begin(struct ledger *l, struct error *err)
{
    if (l->readonly)
        return error_set(err, STATUS_REFUSED, "the ledger was opened read-only");
    if (l->in_tx)
        return error_set(err, STATUS_INTERNAL, "ledger transaction inside a transaction");
    enum status rc = db_exec(l, err, "BEGIN IMMEDIATE", "");
    if (!rc)
        l->in_tx = true;
    return rc;
}

enum status ledger_commit(struct ledger *l, bool full, struct error *err)
{
    enum status rc;
    if (!l->in_tx)
        return error_set(err, STATUS_INTERNAL, "ledger commit without a transaction");
    rc = db_exec(l, err, "COMMIT", "");
    if (rc) {
        ledger_rollback(l);
        return rc;
    }
    l->in_tx = false;
    // synchronous cannot change inside a transaction. In WAL mode a FULL commit fsyncs the log up to and
    // including every earlier frame, so an empty-handed write under FULL makes everything before it durable.
    if (full) {
        if ((rc = exec_plain(l, "PRAGMA synchronous=FULL", err)))
            return rc;
        rc = exec_plain(l,
                        "BEGIN IMMEDIATE; UPDATE epoch SET n = n + 1 WHERE role = 'sync'; INSERT OR IGNORE "
                        "INTO epoch VALUES('sync', 1);"
                        "COMMIT",
                        err);
        struct error none;
        if (exec_plain(l, "PRAGMA synchronous=NORMAL", rc ? &none : err) && !rc)
            rc = err ? err->status : STATUS_IO;
    }
    return rc;
}

void ledger_rollback(struct ledger *l)
{
    if (!l->in_tx)
        return;
    sqlite3_exec(l->db, "ROLLBACK", NULL, NULL, NULL); // fails only when SQLite has rolled back already
    l->in_tx = false;
}

bool ledger_in_transaction(const struct ledger *l)
{
    return l->in_tx;
}

enum status ledger_next_epoch(struct ledger *l, const char *role, int64_t *ret, struct error *err)
{
    enum status rc = db_writable(l, "next epoch", err);
    if (rc)
        return rc;
    if ((rc = db_exec(l, err, "INSERT INTO epoch VALUES(?1, 1) ON CONFLICT(role) DO UPDATE SET n = n + 1",
                      "t", role)))
        return rc;
    return db_int(l, err, 0, ret, "SELECT n FROM epoch WHERE role = ?1", "t", role);
}

enum status ledger_meta_set(struct ledger *l, const char *key, const char *value, struct error *err)
{
    enum status rc = db_writable(l, "meta", err);
    if (rc)
        return rc;
    return db_exec(l, err, "INSERT INTO meta VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2", "tt",
                   key, value);
}

enum status ledger_meta_get(struct ledger *l, const char *key, char **ret, struct error *err)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(l, "SELECT value FROM meta WHERE key = ?1", &st, err);
    if (rc)
        return rc;
    db_bind(st, "t", key);
    if ((rc = db_step(l, st, &row, err)))
        return rc;
    if (!row)
        return error_set(err, STATUS_NOTFOUND, "ledger %s has no entry %s", l->path, key);
    *ret = mem_strdup((const char *)sqlite3_column_text(st, 0));
    sqlite3_reset(st);
    return STATUS_OK;
}
