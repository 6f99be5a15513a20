// ooze-orchestrator: the program. Reads its options, ties itself to its parent, runs.
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/log.h"
#include "orchestrator/orch.h"

static const char help[] =
    "NAME\n"
    "    ooze-orchestrator - runs the loop of one training run\n"
    "\n"
    "SYNOPSIS\n"
    "    ooze-orchestrator --run RUN [--restarts N]\n"
    "\n"
    "DESCRIPTION\n"
    "    Draws prompts from the task services, has the rollout engines answer them, collects rewards, "
    "prepares steps for the\n"
    "    trainer and records every token in RUN/ledger.sqlite. `ooze run` starts it; by hand it is only "
    "useful for debugging.\n"
    "    It reads RUN/config.yaml, RUN/id and RUN/token, listens on the run's orch socket for engines, "
    "trainer and `ooze`, and on\n"
    "    HTTP (orchestrator.http_host, http_port; the port is written to RUN/orchestrator.port):\n"
    "        POST /v1/tasks   register a task service {url, name, ratio, max_concurrency, ttl_s}; bearer "
    "token of RUN/token\n"
    "        GET  /v1/tasks, /v1/status, /metrics (Prometheus), /health\n"
    "\n"
    "OPTIONS\n"
    "    --run RUN        run directory\n"
    "    --restarts N     how often the supervisor has started this process before [0]\n"
    "    --help           this text\n"
    "\n"
    "SIGNALS\n"
    "    SIGTERM, SIGINT  once: no new work, running work may finish for orchestrator.drain_ms, checkpoint, "
    "end; twice: end now.\n"
    "                     The run can be resumed either way, also after SIGKILL.\n"
    "\n"
    "FILES\n"
    "    RUN/ledger.sqlite, RUN/metrics.jsonl, RUN/orchestrator.port, RUN/tasks/NAME.port (read)\n"
    "\n"
    "EXIT STATUS\n"
    "    0   the run is done, or stopped in order\n"
    "    1   it failed; the cause was logged once and is in `ooze status`\n"
    "    2   wrong usage or a configuration that cannot work\n"
    "    75  start me again (an address still in use by my predecessor)\n";

static int usage(const char *what)
{
    fprintf(stderr, "ooze-orchestrator: %s (try --help)\n", what);
    return 2;
}

static int code_of(enum status s)
{
    switch (s) {
    case STATUS_INVALID:
    case STATUS_RANGE:
    case STATUS_TYPE:
    case STATUS_UNSUPPORTED:
    case STATUS_NOTFOUND:
        return 2;
    case STATUS_BUSY:
    case STATUS_AGAIN:
        return 75;
    default:
        return 1;
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"run", required_argument, NULL, 'r'},
                                            {"restarts", required_argument, NULL, 'n'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct orch_options opt = {.signals = true};
    int c;
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        char *end;
        switch (c) {
        case 'r':
            opt.run_dir = optarg;
            break;
        case 'n':
            opt.restarts = strtoll(optarg, &end, 10);
            if (*end || opt.restarts < 0)
                return usage("--restarts needs a count");
            break;
        case 'h':
            fputs(help, stdout);
            return 0;
        default:
            return 2;
        }
    }
    if (!opt.run_dir || optind != argc)
        return usage("needs --run RUN and nothing else");
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL); // the supervisor is gone: stop at once, the ledger is whole
    if (getppid() != parent)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    log_init("orchestrator", LOG_INFO);
    struct orch *o = NULL;
    struct error err;
    enum status rc = orch_open(&opt, &o, &err);
    if (rc) {
        char text[1100];
        log_event(LOG_ERROR, "start_failed", "cause=%s", log_quote(err.text, text, sizeof text));
        return code_of(rc);
    }
    int code = orch_run(o);
    orch_close(o);
    return code;
}
