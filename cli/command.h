// What every command of `ooze` shares. A command is one file cli/<name>.c with int command_<name>(argc, argv), registered by one line
// in command.def. Exit codes: 0 done, 1 failed (said once on stderr), 2 wrong usage or bad configuration.
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/runconfig.h"
#include "base/status.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

#define COMMAND(name, args, help) int command_##name(int argc, char **argv);
#include "cli/command.def"
#undef COMMAND

// Prints "ooze COMMAND: text" to stderr and returns the exit code that goes with the status.
int command_fail(const char *command, const struct error *err);

// Options of a command: --name, --name=VALUE or --name VALUE, in any place; -h and --help print `usage` and end the command.
struct option_spec {
    const char *name;   // without the dashes
    const char **value; // set to the argument …
    bool *flag;         // … or set to true
};
// Leaves the other arguments in argv[0 … *ret_n). Returns -1 to go on, else the exit code.
int options_parse(const char *command, const char *usage, const struct option_spec *specs, int argc,
                  char **argv, int *ret_n);

// Loads RUN/config.yaml into fresh memory (free()); fails with a sentence that says what RUN should be.
enum status run_load(const char *run_dir, struct run_config **ret, struct error *err) OOZE_MUST_USE;
// RUN/id.
enum status run_id(const char *run_dir, char ret[64], struct error *err) OOZE_MUST_USE;
// The supervisor's pid while one holds RUN/lock, else 0.
int64_t run_owner(const char *run_dir);
// Newest checkpoint folder that is recorded and still there, or the one of --checkpoint; NOTFOUND with what to do.
enum status run_checkpoint(const char *run_dir, const char *wanted, char *ret, unsigned long n,
                           struct error *err) OOZE_MUST_USE;
// The folder of our own programs (next to this one), so that a run uses the build it was started from.
enum status program_path(const char *name, char *ret, unsigned long n, struct error *err) OOZE_MUST_USE;

// Asks the orchestrator (QUERY → REPLY). args may be NULL. STATUS_PEER when none answers within timeout_ms; the reply's own error
// otherwise.
enum status query_run(const char *run_dir, const char *verb, const json_t *args, int timeout_ms, json_t **ret,
                      struct error *err) OOZE_MUST_USE;

#endif
