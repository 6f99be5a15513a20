// Private to the ledger: SQLite with our errors, cached statements and one-line binding.
#ifndef LEDGER_DB_H
#define LEDGER_DB_H

#include <sqlite3.h>

#include "ledger/ledger.h"

#define DB_STATEMENTS 96

struct ledger {
    sqlite3 *db;
    const struct clock *clock;
    bool readonly;
    bool in_tx;
    bool full; // synchronous = FULL right now
    int n_statements;
    struct {
        const char *sql; // a string literal: its address is the key
        sqlite3_stmt *st;
    } statements[DB_STATEMENTS];
    char path[1100];
};

extern const char *const ledger_schema;
#define LEDGER_SCHEMA_VERSION "1"

// Prepared once per SQL literal, reset and unbound on every call.
enum status db_prepare(struct ledger *l, const char *sql, sqlite3_stmt **ret,
                       struct error *err) OOZE_MUST_USE;
// Binds by format: i int64_t, t const char * (NULL allowed), d double (NAN = NULL), b const void * and int
// (bytes).
void db_bind(sqlite3_stmt *st, const char *format, ...);
// Prepare, bind, run to the end. db_changes tells how many rows it touched.
enum status db_exec(struct ledger *l, struct error *err, const char *sql, const char *format,
                    ...) OOZE_MUST_USE;
// One row: *ret_row says whether there is one; the statement stays on it until the next use.
enum status db_step(struct ledger *l, sqlite3_stmt *st, bool *ret_row, struct error *err) OOZE_MUST_USE;
int64_t db_changes(struct ledger *l);
enum status db_error(struct ledger *l, struct error *err, const char *what) OOZE_MUST_USE;
// One integer, `none` when there is no row or it is NULL.
enum status db_int(struct ledger *l, struct error *err, int64_t none, int64_t *ret, const char *sql,
                   const char *format, ...) OOZE_MUST_USE;

static inline int64_t db_col_int(sqlite3_stmt *st, int i, int64_t null)
{
    return sqlite3_column_type(st, i) == SQLITE_NULL ? null : sqlite3_column_int64(st, i);
}

// Needs an open transaction on a writable ledger.
enum status db_writable(struct ledger *l, const char *what, struct error *err) OOZE_MUST_USE;

#endif
