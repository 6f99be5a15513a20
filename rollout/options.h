// The command line of ooze-rollout.
#ifndef ROLLOUT_OPTIONS_H
#define ROLLOUT_OPTIONS_H

#include "rollout/engine.h"

enum options_mode { OPTIONS_RUN, OPTIONS_SERVE, OPTIONS_GENERATE, OPTIONS_SCORE };

struct options {
    enum options_mode mode;
    const char *run_dir, *name; // OPTIONS_RUN
    int64_t restarts;
    const char *connect; // OPTIONS_RUN of another host: the orchestrator's endpoint; run_dir is a join folder
    const char *model_dir; // the others
    enum dtype dtype;
    int threads; // 0 = default
    const char *isa, *http_host, *port_file, *token_file;
    int http_port;
    struct engine_config engine;
    bool verbose;
};

// -1: go on with *ret; else the process's exit code (help was asked for, or the usage was wrong and has been said).
int options_parse(int argc, char **argv, struct options *ret);

#endif
