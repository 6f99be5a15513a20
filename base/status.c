// Errors as values: see status.h. Pure functions on caller-owned memory; any thread.
#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

const char *status_name(enum status s)
{
    switch (s) {
#define X(name, value, text)                                                                                 \
    case STATUS_##name:                                                                                      \
        return #name;
        STATUS_TABLE(X)
#undef X
    }
    return "UNKNOWN";
}

const char *status_text(enum status s)
{
    switch (s) {
#define X(name, value, text)                                                                                 \
    case STATUS_##name:                                                                                      \
        return text;
        STATUS_TABLE(X)
#undef X
    }
    return "unknown status";
}

enum status error_set(struct error *e, enum status s, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        e->status = s;
        vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
        utf8_mend(e->text);
    }
    return s;
}

enum status error_errno(struct error *e, int errnum, const char *fmt, ...)
{
    enum status s = errnum == ENOENT   ? STATUS_NOTFOUND
                    : errnum == ENOMEM ? STATUS_NOMEM
                    : errnum == EEXIST ? STATUS_EXISTS
                                       : STATUS_IO;
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        e->status = s;
        vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
        size_t n = strlen(e->text);
        snprintf(e->text + n, sizeof e->text - n, ": %s", strerror(errnum));
        utf8_mend(e->text);
    }
    return s;
}

enum status error_prefix(struct error *e, const char *fmt, ...)
{
    if (!e)
        return STATUS_INTERNAL;
    char old[sizeof e->text];
    memcpy(old, e->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, ": %s", old);
    utf8_mend(e->text);
    return e->status;
}
