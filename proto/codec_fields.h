// Between the files of proto: which fields of msg.h have a field of the same name in ooze.proto. Both directions of the
// codec are written from these lists, so that a field cannot be sent and not read. N: number or bool, S: string.
// Tables and the sampling parameters, which are messages within messages, are written out in codec.c and parity.c.
#ifndef PROTO_CODEC_FIELDS_H
#define PROTO_CODEC_FIELDS_H

// How a field goes from struct m to message pb, and back.
#define PUT_N(f) pb->f = m->f;
#define PUT_S(f) pb->f = (char *)(m->f ? m->f : "");
#define GET_N(f) m->f = pb->f;
#define GET_S(f) m->f = pb->f ? pb->f : "";

// An arena array of `count` messages and the array of pointers that protobuf-c wants. False when out of memory.
#define NEW_TABLE(arena, count, ret_items, ret_pointers)                                                     \
    ((ret_items) = arena_zalloc(arena, sizeof(*(ret_items)) * (size_t)(count)),                              \
     (ret_pointers) = arena_alloc(arena, sizeof(*(ret_pointers)) * (size_t)(count)),                         \
     (ret_items) && (ret_pointers))

// columns of a table
// clang-format off

// MSG_x, member of struct msg, field of Envelope, BODY_x, message, message in lower case
#define CODEC_BODIES(X)                                                                                      \
    X(HELLO, hello, hello, HELLO, Hello, hello)                                                              \
    X(WELCOME, welcome, welcome, WELCOME, Welcome, welcome)                                                  \
    X(PING, ping, ping, PING, Ping, ping)                                                                    \
    X(PONG, ping, pong, PONG, Ping, ping)                                                                    \
    X(JOB, job, job, JOB, Job, job)                                                                          \
    X(TOKEN_DATA, tokens, tokens, TOKENS, Tokens, tokens)                                                    \
    X(ACK, ack, ack, ACK, Ack, ack)                                                                          \
    X(CANCEL, cancel, cancel, CANCEL, Cancel, cancel)                                                        \
    X(PREPARE, prepare, prepare, PREPARE, Prepare, prepare)                                                  \
    X(STEP_DONE, step_done, step_done, STEP_DONE, StepDone, step_done)                                       \
    X(COMMIT_ACK, commit_ack, commit_ack, COMMIT_ACK, CommitAck, commit_ack)                                 \
    X(CHECKPOINT, checkpoint, checkpoint, CHECKPOINT, Checkpoint, checkpoint)                                \
    X(VERSION, version, version, VERSION, Version, version)                                                  \
    X(LOADED, loaded, loaded, LOADED, Loaded, loaded)                                                        \
    X(CHUNK_REQUEST, chunk_request, chunk_request, CHUNK_REQUEST, ChunkRequest, chunk_request)               \
    X(CHUNK_DATA, chunk_data, chunk_data, CHUNK_DATA, ChunkData, chunk_data)                                 \
    X(QUERY, query, query, QUERY, Query, query)                                                              \
    X(REPLY, reply, reply, REPLY, Reply, reply)                                                              \
    X(CHECK, check, check, CHECK, Check, check)                                                              \
    X(CHECK_DONE, check_done, check_done, CHECK_DONE, CheckDone, check_done)                                 \
    X(TRACE, trace, trace, TRACE, Trace, trace)                                                              \
    X(TRACE_DONE, trace_done, trace_done, TRACE_DONE, TraceDone, trace_done)                                 \
    X(BYE, bye, bye, BYE, Bye, bye)

#define FIELDS_hello(N, S)                                                                                   \
    N(role)                                                                                                  \
    S(run)                                                                                                   \
    S(name) S(build) S(numerics_id) N(pid) N(version) S(version_hash) N(kv_tokens) N(max_running)            \
        N(restarts) N(remote)
#define FIELDS_welcome(N, S)                                                                                 \
    S(run)                                                                                                   \
    N(orchestrator_epoch)                                                                                    \
    N(epoch) N(accepted) S(reason) N(ping_interval_ms) N(silence_ms) N(checkpoint_step) S(checkpoint)        \
        S(checkpoint_hash) N(committed_steps) N(version) S(version_path) S(version_hash)
#define FIELDS_ping(N, S)                                                                                    \
    N(nonce)                                                                                                 \
    N(version)                                                                                               \
    N(running) N(waiting) N(kv_used) N(kv_capacity) N(generated_tokens) N(prefill_tokens) N(cached_tokens)   \
        N(preemptions) N(step) N(busy)
#define FIELDS_job(N, S)                                                                                     \
    N(job)                                                                                                   \
    N(orchestrator_epoch)                                                                                    \
    N(run_seed) N(trajectory) N(attempt) N(segment) N(min_version) N(session) N(deadline_ms) N(n_ids)        \
        N(prompt_logprobs)
#define FIELDS_tokens(N, S) N(job) N(offset) N(n) N(finish) S(error) N(cached_tokens) N(n_prompt_logprobs)
#define FIELDS_ack(N, S)    N(job) N(durable_to)
#define FIELDS_cancel(N, S) N(job)
#define FIELDS_prepare(N, S)                                                                                 \
    N(epoch)                                                                                                 \
    N(step)                                                                                                  \
    N(stage) N(stage_step) N(stage_first) N(lr) N(packing_seed) N(updates) N(publish) N(checkpoint)          \
        N(replay) S(expect_hash) N(optimizer_reset) N(n_tokens)
#define FIELDS_step_done(N, S)     N(epoch) N(step) N(outcome) S(reason) N(version) S(hash) S(path) N(bytes)
#define FIELDS_commit_ack(N, S)    N(epoch) N(step) N(result) S(reason)
#define FIELDS_checkpoint(N, S)    N(epoch) N(step) S(path) S(hash)
#define FIELDS_version(N, S)       N(version) S(path) S(hash) N(bytes)
#define FIELDS_loaded(N, S)        N(version) S(hash) N(ok) S(error) N(load_ms) N(stall_ms)
#define FIELDS_chunk_request(N, S) N(version) N(offset) N(bytes)
#define FIELDS_chunk_data(N, S)    N(version) N(offset) N(total) N(n)
#define FIELDS_query(N, S)         N(id) S(verb) S(args)
#define FIELDS_reply(N, S)         N(id) N(status) S(json)
#define FIELDS_check(N, S)         N(epoch) N(id) N(step) N(n_tokens)
#define FIELDS_check_done(N, S)                                                                              \
    N(epoch)                                                                                                 \
    N(id)                                                                                                    \
    N(compared) N(skipped) N(crossing) N(tokens) N(tokens_skipped) N(max_abs_diff) N(differs) N(trajectory)  \
        N(attempt) N(segment) N(position) N(version) N(recorded) N(rescored) S(error)
#define FIELDS_trace(N, S)      N(epoch) N(id) N(version) S(path) S(hash) N(n_ids)
#define FIELDS_trace_done(N, S) N(epoch) N(id) N(version) N(ok) S(error) N(n_logprobs)
#define FIELDS_bye(N, S)        N(failed)

#define FIELDS_sampling(N, S)                                                                                \
    N(temperature) N(top_p) N(min_p) N(top_k) N(max_new) N(min_new) N(ignore_eos) N(train)
#define FIELDS_span(N, S) N(version) N(start) N(end)
#define FIELDS_kv(N, S)   N(kind) N(at_token) N(from) N(to) N(version)
#define FIELDS_member(N, S)                                                                                  \
    N(trajectory) N(attempt) N(segment) N(group) N(n_tokens) N(multiplicity) N(advantage) N(task)
#define FIELDS_metric(N, S)        S(name) N(value)
#define FIELDS_check_segment(N, S) N(trajectory) N(attempt) N(segment) N(n_tokens) N(n_kv)
#define FIELDS_weights(N, S)       N(version) S(path) S(hash)
#define FIELDS_trace_op(N, S)      N(layer) N(nth) S(block) S(op)

#endif
