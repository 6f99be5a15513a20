// ooze-rollout: the engine's process. Parses its arguments and runs one of its modes; every failure stops here and is logged once.
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "rollout/local.h"
#include "rollout/options.h"
#include "rollout/serve.h"

#define EXIT_USAGE 2

static enum status run_local(const struct options *o, struct error *err)
{
    const struct local_config c = {.model_dir = o->model_dir,
                                   .isa = o->isa,
                                   .threads = o->threads,
                                   .dtype = o->dtype,
                                   .engine = o->engine,
                                   .score = o->mode == OPTIONS_SCORE};
    return local_run(&c, stdin, stdout, err);
}

int main(int argc, char **argv)
{
    struct options o;
    int code = options_parse(argc, argv, &o);
    if (code >= 0)
        return code;
    bool local = o.mode == OPTIONS_GENERATE || o.mode == OPTIONS_SCORE, config_bad = false;
    log_init(o.mode == OPTIONS_RUN ? o.name : "rollout", o.verbose ? LOG_DEBUG : local ? LOG_WARN : LOG_INFO);
    struct error err = {0};
    enum status st = o.mode == OPTIONS_RUN ? serve_run(&o, &config_bad, &err)
                     : local               ? run_local(&o, &err)
                                           : serve_model(&o, &err);
    if (st == STATUS_OK) {
        if (!local)
            log_event(LOG_INFO, "stopped", "cause=signal");
        return 0;
    }
    char quoted[1200];
    log_event(LOG_ERROR, config_bad ? "config" : "failed", "status=%s cause=%s", status_name(st),
              log_quote(err.text, quoted, sizeof quoted));
    return config_bad ? EXIT_USAGE : EXIT_FAILURE;
}
