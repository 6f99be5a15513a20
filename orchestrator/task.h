// The registry of task services ("Task services" of protocols.md): where they are, what they say of themselves, how many episodes they may have.
//
//   TASK_WAIT ── port file there ─► TASK_PROBE ── GET /task ok ─► TASK_UP ◄─► TASK_DOWN (GET /health until it answers)
//   any ── task_remove, ttl over, nonsense from a runtime task ─► TASK_REMOVED
//
// Invariants
//   1. Ids are 0, 1, 2, … in order of first registration, never reused; a name registered again keeps its id.
//   2. At most max_concurrency episodes of a task run; the others wait in the order they came.
//   3. Only http(s) URLs that url_check lets pass are called.
#ifndef ORCHESTRATOR_TASK_H
#define ORCHESTRATOR_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/runconfig.h"
#include "base/status.h"

struct orch;
struct episode;
struct http_call;

#define TASKS_MAX 256

enum task_state { TASK_WAIT, TASK_PROBE, TASK_UP, TASK_DOWN, TASK_REMOVED };

struct task {
    struct orch *o;
    int64_t id;
    enum task_state state;
    const char *origin; // config | cli | service
    struct run_task cfg;
    char url[RUNCONFIG_PATH]; // "" until the port is known
    // from GET /task
    json_t *tools;           // NULL = none
    int64_t n_train, n_eval; // -1 = unbounded
    int64_t max_turns;       // 0 = no limit of its own
    double reward_min, reward_max;
    // rate
    int running;                              // episodes at the service
    struct episode *queue_first, *queue_last; // waiting for a place
    int n_queued;
    // share
    double pass;                // stride scheduling: groups issued / ratio
    int64_t cursor;             // prompts drawn so far
    int64_t episodes, failures; // since the start
    // probing
    struct http_call *call;
    int64_t next_probe_ms, backoff_ms, wait_since_ms;
    int64_t ttl_s, ttl_deadline_ms; // 0 = none; a restart of the orchestrator gives it ttl_s again
    bool ever_up, logged;
    // replies in a row that were of no use
    int useless;
    int64_t useless_since_ms, useless_last_ms;
    char useless_cause[200];
};

struct tasks {
    struct task *v[TASKS_MAX];
    int n;
};

// Tasks of the configuration and those the ledger remembers.
enum status tasks_open(struct orch *o, struct error *err) OOZE_MUST_USE;
void tasks_close(struct orch *o);
void tasks_tick(struct orch *o);
bool tasks_all_up(const struct orch *o); // every task of the configuration has been up
struct task *tasks_by_id(struct orch *o, int64_t id);
struct task *tasks_by_name(struct orch *o, const char *name);

// {url, name, ratio?, max_concurrency?, ttl_s?}; origin "cli" or "service".
enum status task_register(struct orch *o, const json_t *args, const char *origin,
                          struct error *err) OOZE_MUST_USE;
enum status task_remove(struct orch *o, const char *name, const char *cause, struct error *err) OOZE_MUST_USE;

// A call to the service failed in a way that may mean it is gone: probe it before anything else goes there.
void task_suspect(struct task *t, const char *cause);
// The service answered, and the answer was no use (task_useless) or was (task_useful). After 16 of no use in a row a task is given one
// pause of a second after another; when that goes on for step_timeout_ms, a task of the configuration ends the run with the last cause,
// and one that joined is removed: what never answers well must not be asked for ever.
void task_useless(struct task *t, const char *cause);
void task_useful(struct task *t);
bool task_is_up(const struct task *t);
const char *task_state_name(enum task_state s);

// What GET /task answered, checked. Pure but for t.
enum status task_describe(struct task *t, const char *body, size_t n, struct error *err) OOZE_MUST_USE;

#endif
