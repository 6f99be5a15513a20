// The orchestrator's HTTP side: POST /v1/tasks (bearer RUN/token), GET /v1/tasks and GET /v1/status (bearer off loopback), GET
// /metrics, GET /health.
#ifndef ORCHESTRATOR_API_H
#define ORCHESTRATOR_API_H

#include "base/status.h"

struct orch;

// Listens and writes RUN/orchestrator.port.
enum status api_open(struct orch *o, struct error *err) OOZE_MUST_USE;
void api_close(struct orch *o);

#endif
