// The client's memory of its jobs: every token from sampling until the orchestrator has it durably. Owner: the I/O thread.
#ifndef ROLLOUT_JOBS_H
#define ROLLOUT_JOBS_H

#include "proto/msg.h"
#include "rollout/outputs.h"

struct job {
    uint64_t job;
    int64_t epoch; // of the orchestrator that sent it
    int32_t n_prompt;
    int32_t *ids;    // [n] sampled
    float *logprobs; // [n]
    int32_t n, cap;
    struct msg_span *spans;
    int32_t n_spans, cap_spans;
    struct msg_kv *kv;
    int32_t n_kv, cap_kv;
    float *prompt_logprobs;
    int32_t n_prompt_logprobs;
    int32_t sent, durable; // tokens [0, sent) were sent since the last WELCOME, [0, durable) acknowledged
    int32_t finish;        // enum msg_finish
    bool finish_sent;
    bool unsendable; // it was ended because its tokens could not be sent
    int32_t cached;
    char *error;
    bool queued; // in the list of jobs with something to send
    struct job *chain, *next_queued;
};

struct jobs;

struct jobs *jobs_open(void);
void jobs_close(struct jobs *j);
int32_t jobs_count(const struct jobs *j);
int64_t jobs_kept_tokens(const struct jobs *j); // sampled and not durable

struct job *jobs_find(struct jobs *j, uint64_t job);           // NULL: unknown
struct job *jobs_add(struct jobs *j, const struct msg_job *m); // must be unknown
void jobs_forget(struct jobs *j, struct job *b);
// Appends an output to its job and queues the job for sending.
void jobs_take(struct jobs *j, struct job *b, const struct outputs *o, const struct output *item);
void jobs_fail(struct jobs *j, struct job *b, const char *error); // ends it with FINISH_ERROR
// What was not sent of it cannot be said: drops that and ends the job with FINISH_ERROR.
void jobs_fail_unsent(struct jobs *j, struct job *b, const char *error);

// The list of jobs with something to send, first in first out.
void jobs_queue(struct jobs *j, struct job *b);
struct job *jobs_queued(const struct jobs *j);
void jobs_unqueue(struct jobs *j); // the first one
// What is to be sent of b: the tokens from b->sent on. Arrays live until the next call.
void jobs_message(struct jobs *j, const struct job *b, struct msg *ret);
// Everything not durable is to be sent again.
void jobs_rewind(struct jobs *j, struct job *b);
void jobs_rewind_all(struct jobs *j);
// Tokens [0, durable_to) are durable; a finished job that was sent whole is forgotten.
void jobs_acknowledge(struct jobs *j, struct job *b, int32_t durable_to);
// Calls fn for each job; fn may forget the job it is given.
void jobs_each(struct jobs *j, void (*fn)(void *ctx, struct job *b), void *ctx);

#endif
