// What `ooze run` prints while a run goes on: a line a step at most once a second, evaluations as they come, notes in between.
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>

#include "base/status.h"
#include "net/loop.h"

struct progress;
enum status progress_open(struct loop *l, const char *run_dir, bool quiet, struct progress **ret,
                          struct error *err) OOZE_MUST_USE;
void progress_close(struct progress *p); // prints what is still to be said; NULL is fine
void progress_note(struct progress *p, const char *fmt, ...) OOZE_PRINTF(2, 3);

#endif
