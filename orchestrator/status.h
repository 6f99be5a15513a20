// What the CLI asks (QUERY) and what it gets: status, task_list, task_register, task_remove, stop.
#ifndef ORCHESTRATOR_STATUS_H
#define ORCHESTRATOR_STATUS_H

#include "base/json.h"
#include "proto/wire.h"

struct orch;

// The object of `ooze status --json`; json_decref it.
json_t *status_json(struct orch *o);
json_t *status_tasks(struct orch *o); // {tasks:[…]}
// The answer to a query from where none may come.
void query_refuse(struct orch *o, const struct wire_peer *from, const struct msg_query *q);
void query_on_message(struct orch *o, const struct wire_peer *from, const struct msg_query *q);

#endif
