// Publishing: weights N as an immutable file that engines of this host map (contract 2).
//
// Where: shared memory (/dev/shm/ooze-<run>-<version>) when it has room for one more file beside those kept, else
// RUN/weights/<version>.safetensors. Shared memory does not outlive the machine and need not: a resume republishes out of the
// newest checkpoint. The newest keep_weights files stay, older ones go when a newer one is committed; the last of these lends its
// pages to the next version (/dev/shm/ooze-<run>-spare), if no engine reads it any more (model/kept.h). A clean exit leaves nothing
// in shared memory.
#ifndef TRAINER_PUBLISH_H
#define TRAINER_PUBLISH_H

#include "base/hash.h"
#include "model/folder.h"
#include "trainer/trainer.h"

struct publish {
    char run_dir[RUNCONFIG_PATH];
    char run[RUNCONFIG_NAME]; // run id
    char shm[RUNCONFIG_PATH]; // "/dev/shm"; "" = never
    struct kept kept;         // maps of the files in shared memory
};

// Also removes temporaries that killed incarnations of this run left.
enum status publish_init(struct publish *p, const char *run_dir, const char *run, const char *shm,
                         struct error *err) OOZE_MUST_USE;
// Weights t->step. write = false: the hash alone, path "" and 0 bytes.
enum status publish_weights(struct publish *p, const struct trainer *t, bool write,
                            char ret_path[RUNCONFIG_PATH], char ret_hash[HASH_HEX], int64_t *ret_bytes,
                            struct error *err) OOZE_MUST_USE;
// The same for what t's weights are after `before` (folder.h), which become `version`.
enum status publish_update(struct publish *p, const struct trainer *t, int64_t version,
                           struct weights_before *before, bool write, char ret_path[RUNCONFIG_PATH],
                           char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err) OOZE_MUST_USE;
// Removes all but the newest `keep` files.
void publish_prune(const struct publish *p, int64_t keep);
// Clean exit: nothing of this run stays in shared memory.
void publish_leave(struct publish *p);
void publish_done(struct publish *p); // the files stay

#endif
