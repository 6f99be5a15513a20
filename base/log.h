// One line per event, key=value, to stderr: `level=error room=trainer event=… cause="…"`. Only process rooms
// log, each failure once, where the error stops travelling. Thread-safe: a line is one write().
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

// room names the process ("trainer", "engine-0"); copied.
void log_init(const char *room, enum log_level level);
// fmt builds the fields after event=…, e.g. log_event(LOG_INFO, "commit", "step=%lld loss=%.4f", …).
// Values that may hold spaces are written as key="…" by the caller through log_quote.
void log_event(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
// Quotes and escapes s into buf ("…" with \" \\ and control characters escaped); returns buf.
const char *log_quote(const char *s, char *buf, unsigned long n);

#endif
