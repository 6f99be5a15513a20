// Publishing: weights N as an immutable file that engines of this host map (contract 2).
//
// Where: shared memory (/dev/shm/ooze-<run>-<version>) when it has room for one more file beside those kept, else
// RUN/weights/<version>.safetensors. Shared memory does not outlive the machine and need not: a resume republishes out of the
// newest checkpoint. The newest keep_weights files stay, older ones go when a newer one is committed; the last of these lends its
// pages to the next version (/dev/shm/ooze-<run>-spare), if no engine has it mapped any more. A clean exit leaves nothing in
// shared memory.
#ifndef TRAINER_PUBLISH_H
#define TRAINER_PUBLISH_H

#include "base/hash.h"
#include "trainer/trainer.h"

struct publish {
    char run_dir[RUNCONFIG_PATH];
    char run[RUNCONFIG_NAME]; // run id
    char shm[RUNCONFIG_PATH]; // "/dev/shm"; "" = never
};

// Also removes temporaries that killed incarnations of this run left.
enum status publish_init(struct publish *p, const char *run_dir, const char *run, const char *shm,
                         struct error *err) OOZE_MUST_USE;
// Weights t->step. write = false: the hash alone, path "" and 0 bytes.
enum status publish_weights(const struct publish *p, const struct trainer *t, bool write,
                            char ret_path[RUNCONFIG_PATH], char ret_hash[HASH_HEX], int64_t *ret_bytes,
                            struct error *err) OOZE_MUST_USE;
// Removes all but the newest `keep` files.
void publish_prune(const struct publish *p, int64_t keep);
// Clean exit: nothing of this run stays in shared memory.
void publish_leave(const struct publish *p);

#endif
