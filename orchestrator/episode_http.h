// What an episode says to its service and what becomes of the answers ("Task services" of protocols.md). Internal to the two episode files.
#ifndef ORCHESTRATOR_EPISODE_HTTP_H
#define ORCHESTRATOR_EPISODE_HTTP_H

#include "orchestrator/episode.h"

void episode_call_create(struct episode *ep);
void episode_call_step(struct episode *ep);
void episode_send_delete(struct orch *o, struct task *t, const char *id); // fire and forget
// reward and reward_components of a step's reply, also of a stored one. A reply without a reward leaves the last one as it is.
enum status episode_take_reward(struct episode *ep, const json_t *reply, bool done,
                                struct error *err) OOZE_MUST_USE;
void episode_unpause(struct episode *ep, bool too_late);

// episode.c: what follows.
void episode_resume(struct episode *ep);
void episode_generate(struct episode *ep);
void episode_generate_when_durable(struct episode *ep);
void episode_finish(struct episode *ep, double reward, bool truncated);
void episode_finish_at_limit(struct episode *ep);
void episode_finish_policy(struct episode *ep);
void episode_fail(struct episode *ep, enum drop_reason reason, const char *detail);

#endif
