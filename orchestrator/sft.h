// Supervised stages: JSONL chat rows become token sequences here and travel through the ledger as rollouts do.
//
// A row is {"messages": […], "tools": […]?}; a message or a content part with "train": false is context only. Row r of the file in its
// k-th epoch is unit (offset + r, k). Which rows make step N is a function of (seed, stage, N): shuffled anew each epoch.
#ifndef ORCHESTRATOR_SFT_H
#define ORCHESTRATOR_SFT_H

#include <stdint.h>

#include "base/status.h"
#include "ledger/ledger.h"
#include "text/chat.h"
#include "text/tokens.h"

struct orch;

struct sft_row {
    size_t at;
    int32_t n;
};

struct sft_data {
    struct tokens tokens; // of all rows
    struct sft_row *rows;
    int64_t n_rows, cap_rows;
};

struct sft {
    struct sft_data data;
    int64_t offset; // trajectory of row 0
};

// Reads a file; errors name file and line. A row without a trained token or longer than max_tokens is an error.
enum status sft_data_read(struct sft_data *d, const char *path, const struct chat *c, int64_t max_tokens,
                          struct error *err) OOZE_MUST_USE;
void sft_data_done(struct sft_data *d);
// Row and epoch of position p = stage_step * batch_rows + i. Pure.
int64_t sft_row_at(uint64_t seed, int stage, int64_t n_rows, int64_t p, int64_t *ret_epoch);

// Reads the rows of every supervised stage and forgets them: what a stage would stumble over, hours later.
enum status sft_check(const struct orch *o, struct error *err) OOZE_MUST_USE;
enum status sft_open(struct orch *o, struct error *err) OOZE_MUST_USE; // the stage under way
void sft_close(struct orch *o);
void sft_prepare(struct orch *o);

#endif
