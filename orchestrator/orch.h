// The orchestrator's one object. Everything in this room runs on the thread of its loop and is reached from here.
//
// Tour, in the order of data: task.c (services) → sampler.c (which prompt next) → group.c (groups, admission) → episode.c (one
// conversation with a task) → session.c (its tokens) → router.c (jobs to engines) → step.c (prepared steps) → trainer.c (PREPARE to
// COMMIT) → check.c (scored again) → stage.c (what comes next). Beside them journal.c (durability), peers.c, sft.c, eval.c, metrics.c, status.c, api.c.
#ifndef ORCHESTRATOR_ORCH_H
#define ORCHESTRATOR_ORCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/runconfig.h"
#include "base/status.h"
#include "ledger/ledger.h"
#include "net/http_client.h"
#include "net/http_server.h"
#include "net/loop.h"
#include "orchestrator/check.h"
#include "orchestrator/chunks.h"
#include "orchestrator/episode.h"
#include "orchestrator/eval.h"
#include "orchestrator/group.h"
#include "orchestrator/journal.h"
#include "orchestrator/metrics.h"
#include "orchestrator/peers.h"
#include "orchestrator/router.h"
#include "orchestrator/sft.h"
#include "orchestrator/stage.h"
#include "orchestrator/step.h"
#include "orchestrator/table.h"
#include "orchestrator/task.h"
#include "orchestrator/trainer.h"
#include "proto/wire.h"
#include "text/chat.h"
#include "text/tokenizer.h"

struct orch {
    char run_dir[RUNCONFIG_PATH];
    char run_id[128];
    char token[256];
    struct run_config *cfg;
    const struct clock *clock;
    int64_t restarts;
    int64_t epoch; // grows with each start
    int64_t started_ms, started_wall_ms;

    struct loop *loop;
    struct loop_timer *tick_timer, *kick_timer;
    bool pumping, files_counted;
    struct loop_signal *on_term, *on_int;
    struct wire *wire;
    struct loop_pump *wire_pump;
    struct http_client *http;
    struct http_server *server;
    struct ledger *ledger;
    struct tokenizer *tokenizer;
    struct chat *chat;

    struct journal journal;
    struct peers peers;
    struct chunks chunks;
    struct router router;
    int64_t router_check_ms;
    struct tasks tasks;
    struct groups groups;
    struct episodes episodes;
    struct step step;
    struct trainer_link trainer;
    struct stage stage;
    struct sft sft;
    struct eval eval;
    struct check check;
    struct metrics metrics;

    int64_t next_trajectory, next_group;
    int64_t committed_steps;
    struct {             // newest published weights
        int64_t version; // -1 = none yet
        char path[1024], hash[HASH_HEX];
        int64_t bytes;
    } weights;
    struct {          // newest recorded checkpoint
        int64_t step; // 0 with path "" = the initial model
        char path[1024], hash[HASH_HEX];
    } checkpoint;

    struct { // for status.c
        int64_t made_ms, took_ms;
        struct ledger_counts last;
    } counts;

    bool stopping; // drain: no new groups
    int64_t stop_deadline_ms;
    bool stop_now;              // no waiting for anything, not even a checkpoint
    int64_t stop_checkpoint_ms; // when the checkpoint of the drained run was asked for, 0 = not yet
    bool failed, finished;
    int exit_code;
    char last_error[1024];
};

struct orch_options {
    const char *run_dir;
    int64_t restarts;
    const struct clock *clock; // NULL = the system's
    bool signals;              // SIGTERM and SIGINT drain, twice stop now
};

// Opens everything and restores the run's state from the ledger.
enum status orch_open(const struct orch_options *opt, struct orch **ret, struct error *err) OOZE_MUST_USE;
// Runs until the run is done, stopped or failed; returns the exit code.
int orch_run(struct orch *o);
void orch_close(struct orch *o); // NULL is fine

// Asks for an end: first call drains, second ends now. drain false: now.
void orch_stop(struct orch *o, bool drain);
void orch_finish(struct orch *o, const char *state); // records meta state and ends with exit code 0

int64_t orch_now(const struct orch *o); // monotonic, ms
// Lets everything that waits have a look, once, later in this turn of the loop.
void orch_kick(struct orch *o);
// The run cannot go on: logs once, records last_error, ends with exit code 1 (2 for STATUS_UNSUPPORTED configurations).
void orch_fail(struct orch *o, const struct error *err);
// Something worth showing in `ooze status` happened; the run goes on. Logged.
void orch_warn(struct orch *o, const char *event, const char *fmt, ...) OOZE_PRINTF(3, 4);

// The stage under way; NULL when all are done.
const struct run_stage *orch_stage(const struct orch *o);

#endif
