// SQLite underneath the ledger: see db.h. One thread owns a connection.
#include "ledger/db.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum status db_error(struct ledger *l, struct error *err, const char *what)
{
    int code = sqlite3_extended_errcode(l->db) & 0xff;
    enum status s = code == SQLITE_FULL || code == SQLITE_IOERR ? STATUS_IO
                    : code == SQLITE_NOMEM                      ? STATUS_NOMEM
                    : code == SQLITE_BUSY                       ? STATUS_BUSY
                    : code == SQLITE_CONSTRAINT                 ? STATUS_INTERNAL
                    : code == SQLITE_READONLY                   ? STATUS_REFUSED
                                                                : STATUS_CORRUPT;
    return error_set(err, s, "ledger %s: %s: %s", l->path, what, sqlite3_errmsg(l->db));
}

enum status db_prepare(struct ledger *l, const char *sql, sqlite3_stmt **ret, struct error *err)
{
    for (int i = 0; i < l->n_statements; i++) {
        if (l->statements[i].sql == sql) {
            sqlite3_reset(l->statements[i].st);
            sqlite3_clear_bindings(l->statements[i].st);
            *ret = l->statements[i].st;
            return STATUS_OK;
        }
    }
    if (l->n_statements == DB_STATEMENTS)
        return error_set(err, STATUS_INTERNAL, "ledger: more than %d distinct statements", DB_STATEMENTS);
    sqlite3_stmt *st;
    if (sqlite3_prepare_v3(l->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &st, NULL) != SQLITE_OK)
        return db_error(l, err, sql);
    l->statements[l->n_statements].sql = sql;
    l->statements[l->n_statements].st = st;
    l->n_statements++;
    *ret = st;
    return STATUS_OK;
}

static void bind_list(sqlite3_stmt *st, const char *format, va_list ap)
{
    for (int i = 1; *format; format++, i++) {
        switch (*format) {
        case 'i':
            sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
            break;
        case 't':
            sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
            break;
        case 'd': {
            double d = va_arg(ap, double);
            if (isnan(d))
                sqlite3_bind_null(st, i);
            else
                sqlite3_bind_double(st, i, d);
            break;
        }
        case 'b': {
            const void *p = va_arg(ap, const void *);
            sqlite3_bind_blob(st, i, p, va_arg(ap, int), SQLITE_TRANSIENT);
            break;
        }
        }
    }
}

void db_bind(sqlite3_stmt *st, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    bind_list(st, format, ap);
    va_end(ap);
}

enum status db_step(struct ledger *l, sqlite3_stmt *st, bool *ret_row, struct error *err)
{
    int rc = sqlite3_step(st);
    if (rc == SQLITE_ROW) {
        *ret_row = true;
        return STATUS_OK;
    }
    if (rc == SQLITE_DONE) {
        sqlite3_reset(st);
        *ret_row = false;
        return STATUS_OK;
    }
    enum status s = db_error(l, err, sqlite3_sql(st));
    sqlite3_reset(st);
    return s;
}

enum status db_exec(struct ledger *l, struct error *err, const char *sql, const char *format, ...)
{
    sqlite3_stmt *st;
    enum status rc = db_prepare(l, sql, &st, err);
    if (rc)
        return rc;
    va_list ap;
    va_start(ap, format);
    bind_list(st, format, ap);
    va_end(ap);
    bool row = true;
    while (row)
        if ((rc = db_step(l, st, &row, err)))
            return rc;
    return STATUS_OK;
}

enum status db_int(struct ledger *l, struct error *err, int64_t none, int64_t *ret, const char *sql,
                   const char *format, ...)
{
    sqlite3_stmt *st;
    bool row;
    enum status rc = db_prepare(l, sql, &st, err);
    if (rc)
        return rc;
    va_list ap;
    va_start(ap, format);
    bind_list(st, format, ap);
    va_end(ap);
    if ((rc = db_step(l, st, &row, err)))
        return rc;
    *ret = row ? db_col_int(st, 0, none) : none;
    sqlite3_reset(st);
    return STATUS_OK;
}

int64_t db_changes(struct ledger *l)
{
    return sqlite3_changes64(l->db);
}

enum status db_writable(struct ledger *l, const char *what, struct error *err)
{
    if (l->readonly)
        return error_set(err, STATUS_REFUSED, "%s: the ledger was opened read-only", what);
    if (!l->in_tx)
        return error_set(err, STATUS_INTERNAL, "%s outside a transaction", what);
    return STATUS_OK;
}
