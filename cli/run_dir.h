// A run directory: making one and finding one.
//   id          128 random bits, hex: who belongs to this run
//   token       bearer token of its HTTP sides, 0600
//   config.yaml the resolved configuration
//   tokenizer/  the tokenizer and chat template that every process and every checkpoint of the run uses
//   keys/       CURVE keys of a run that listens for engines of other hosts (ooze keys)
//   lock        held by the supervisor        tasks/      port files of the task services
//   ledger.sqlite, metrics.jsonl, checkpoints/, weights/, logs/
#ifndef CLI_RUN_DIR_H
#define CLI_RUN_DIR_H

#include "base/runconfig.h"
#include "base/status.h"
#include "proto/keys.h"

// Makes c->run_dir (0700). A directory that already holds a run is refused: STATUS_EXISTS says how to go on with it.
enum status run_dir_create(const struct run_config *c, char ret_real[RUNCONFIG_PATH],
                           struct error *err) OOZE_MUST_USE;
enum status run_dir_real(const char *path, char ret_real[RUNCONFIG_PATH], struct error *err) OOZE_MUST_USE;

// Pieces of it, which `ooze keys` puts into a join folder as well. A random secret (32 hex digits, 0600); a copy of a file when there
// is one; config.yaml.
enum status run_dir_secret(const char *dir, const char *name, struct error *err) OOZE_MUST_USE;
enum status run_dir_copy(const char *from_dir, const char *to_dir, const char *name,
                         struct error *err) OOZE_MUST_USE;
enum status run_dir_config(const struct run_config *c, const char *dir, struct error *err) OOZE_MUST_USE;
// The CURVE keys of the run's orchestrator, made when missing: keys/server.key.
enum status run_dir_server_key(const char *dir, struct keys *ret, struct error *err) OOZE_MUST_USE;

// Supervises a run to its end and says how it ended; exit code.
int run_supervised(const char *command, const char *run_dir, const struct run_config *c, bool quiet);

#endif
