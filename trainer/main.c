// ooze-trainer: the process that turns prepared steps into weights. Parses its arguments, opens the session, runs the client;
// every failure stops here and is logged once.
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "trainer/client.h"
#include "trainer/export.h"

#define EXIT_USAGE   2
#define EXIT_RESTART 75 // EX_TEMPFAIL: the supervisor starts another incarnation

static const char help[] =
    "ooze-trainer - turns prepared steps of a run into new weights\n"
    "\n"
    "Usage\n"
    "  ooze-trainer --run RUN [--restarts N]\n"
    "  ooze-trainer --export CHECKPOINT OUT [--dtype f32|bf16|fp8]\n"
    "  ooze-trainer --help | --version\n"
    "\n"
    "  The first form is started by `ooze run`: it reads RUN/config.yaml and RUN/id, connects to the "
    "orchestrator of the run,\n"
    "  restores the checkpoint it is told, computes every step it is sent, publishes the weights and writes "
    "checkpoints.\n"
    "  The second form writes a Hugging Face folder out of a checkpoint and needs no run; `ooze export` "
    "calls it.\n"
    "\n"
    "Options\n"
    "  -r, --run RUN        run directory\n"
    "      --restarts N     how often the supervisor has started this process before (told to the "
    "orchestrator)\n"
    "  -e, --export DIR     checkpoint, RUN/checkpoints/step-N, or any model folder; OUT must not exist\n"
    "  -d, --dtype TYPE     of the exported weights: f32, bf16 (default) or fp8 (E4M3, 128x128 block "
    "scales)\n"
    "  -v, --verbose        log at level debug\n"
    "  -h, --help           this text\n"
    "  -V, --version        version and compiler\n"
    "\n"
    "Files\n"
    "  RUN/checkpoints/step-N/   model.safetensors (f32), optimizer.safetensors, state.json, config.json, "
    "tokenizer\n"
    "  RUN/weights/N.safetensors or /dev/shm/ooze-<run id>-N   published weights\n"
    "\n"
    "Signals\n"
    "  SIGTERM abandons the step under way between two micro-batches (it is computed again after a resume), "
    "leaves nothing half\n"
    "  written and exits with 0. SIGINT is ignored: `ooze run` decides what Ctrl-C means. The process ends "
    "with its parent.\n"
    "\n"
    "Exit status\n"
    "  0 done or stopped, 1 failure (logged once to standard error), 2 bad usage, configuration, model or "
    "checkpoint, 75 "
    "restart me (fenced by a\n"
    "  newer incarnation, or out of step with the orchestrator)\n";

struct options {
    const char *run_dir, *export_dir, *out_dir;
    enum dtype dtype;
    int64_t restarts;
    bool verbose;
};

static int usage(const char *what, const char *value)
{
    fprintf(stderr, "ooze-trainer: %s%s%s (see ooze-trainer --help)\n", what, *value ? ": " : "", value);
    return EXIT_USAGE;
}

static bool parse_dtype(const char *s, enum dtype *ret)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"f32", DT_F32}, {"bf16", DT_BF16}, {"fp8", DT_FP8}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(s, names[i].name) == 0) {
            *ret = names[i].dtype;
            return true;
        }
    }
    return false;
}

// Returns -1 to go on, else the exit code.
static int parse_options(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"run", required_argument, NULL, 'r'},    {"restarts", required_argument, NULL, 'n'},
        {"export", required_argument, NULL, 'e'}, {"dtype", required_argument, NULL, 'd'},
        {"verbose", no_argument, NULL, 'v'},      {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},      {NULL, 0, NULL, 0}};
    char *end;
    *o = (struct options){.dtype = DT_BF16};
    for (int c; (c = getopt_long(argc, argv, "r:e:d:vhV", longs, NULL)) != -1;) {
        switch (c) {
        case 'r':
            o->run_dir = optarg;
            break;
        case 'n':
            o->restarts = strtoll(optarg, &end, 10);
            if (*end || o->restarts < 0)
                return usage("--restarts wants a number", optarg);
            break;
        case 'e':
            o->export_dir = optarg;
            break;
        case 'd':
            if (!parse_dtype(optarg, &o->dtype))
                return usage("--dtype wants f32, bf16 or fp8", optarg);
            break;
        case 'v':
            o->verbose = true;
            break;
        case 'h':
            fputs(help, stdout);
            return 0;
        case 'V':
            puts("ooze-trainer " OOZE_VERSION " (" __VERSION__ ")");
            return 0;
        default:
            return usage("unknown option or missing value", "");
        }
    }
    if (o->export_dir && optind == argc - 1)
        o->out_dir = argv[optind++];
    if (optind < argc)
        return usage("unexpected argument", argv[optind]);
    if (!o->run_dir == !o->export_dir)
        return usage("name either --run RUN or --export CHECKPOINT OUT", "");
    if (o->export_dir && !o->out_dir)
        return usage("--export wants a checkpoint and an output folder", "");
    return -1;
}

static int fail(enum status rc, const struct error *err, const char *event)
{
    char quoted[1200];
    bool again = rc == STATUS_FENCED || rc == STATUS_PROTOCOL || rc == STATUS_PEER;
    // A model folder or checkpoint that cannot be used: another start would say the same.
    bool bad_input = rc == STATUS_INVALID || rc == STATUS_TYPE || rc == STATUS_RANGE ||
                     rc == STATUS_NOTFOUND || rc == STATUS_CORRUPT || rc == STATUS_UNSUPPORTED;
    log_event(again ? LOG_WARN : LOG_ERROR, event, "status=%s cause=%s", status_name(rc),
              log_quote(err->text, quoted, sizeof quoted));
    return again ? EXIT_RESTART : bad_input ? EXIT_USAGE : EXIT_FAILURE;
}

// Blocks SIGTERM in every thread and returns a descriptor that becomes readable with it.
static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static enum status read_run_id(const char *run_dir, char *ret, size_t n, struct error *err)
{
    char path[RUNCONFIG_PATH], *text;
    size_t len;
    enum status rc = file_join(path, sizeof path, run_dir, "id", err);
    if (!rc)
        rc = file_read(path, 256, &text, &len, err);
    if (rc)
        return rc;
    text[strcspn(text, "\r\n")] = 0;
    if (snprintf(ret, n, "%s", text) >= (int)n)
        rc = error_set(err, STATUS_INVALID, "%s holds no run id", path);
    free(text);
    return rc;
}

// Also finds out whether the CPUs to pin to are there.
static enum status warn_of_threads(const struct run_config *config, struct error *err)
{
    struct cores_share *share = mem_must(1, sizeof *share);
    struct cores_list allowed;
    cores_allowed(&allowed);
    enum status rc = cores_for_trainer(config, &allowed, share, err);
    if (!rc && *share->warning)
        log_event(LOG_WARN, "oversubscribed", "cause=\"%s\"", share->warning);
    free(share);
    return rc;
}

static enum status serve_run(const struct options *o, const struct run_config *config, int stop_fd,
                             struct error *err)
{
    char run[RUNCONFIG_NAME], socket[RUNCONFIG_PATH], endpoint[RUNCONFIG_PATH + 8];
    struct session *session = NULL;
    enum status rc = read_run_id(o->run_dir, run, sizeof run, err);
    if (!rc)
        rc = run_socket(o->run_dir, "orch", socket, sizeof socket, err);
    if (!rc)
        rc = warn_of_threads(config, err);
    if (!rc)
        rc = session_open(config, o->run_dir, run, "/dev/shm", clock_system(), &session, err);
    if (rc)
        return rc;
    snprintf(endpoint, sizeof endpoint, "ipc://%s", socket);
    log_event(LOG_INFO, "ready", "device=\"%s\" parameters=%lld", session->trainer->device->name,
              (long long)session->trainer->layout.n_parameters);
    rc = client_run(session,
                    &(struct client_options){
                        .endpoint = endpoint, .run = run, .restarts = o->restarts, .stop_fd = stop_fd},
                    err);
    if (!rc)
        publish_leave(&session->publish);
    session_close(session);
    return rc;
}

static int run_main(const struct options *o)
{
    struct error err = {0};
    struct run_config *config = mem_must(1, sizeof *config);
    int stop_fd = open_signals();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int code = 0;
    enum status rc = runconfig_load_run(o->run_dir, config, &err);
    if (rc) {
        code = fail(rc, &err, "config");
        code = code == EXIT_FAILURE ? EXIT_USAGE : code;
    } else {
        rc = serve_run(o, config, stop_fd, &err);
        code = rc ? fail(rc, &err, "failed") : 0;
        if (!rc)
            log_event(LOG_INFO, "stopped", "cause=SIGTERM");
    }
    if (stop_fd >= 0)
        close(stop_fd);
    free(config);
    return code;
}

int main(int argc, char **argv)
{
    struct options o;
    struct error err = {0};
    int code = parse_options(argc, argv, &o);
    if (code >= 0)
        return code;
    log_init("trainer", o.verbose ? LOG_DEBUG : LOG_INFO);
    if (o.run_dir)
        return run_main(&o);
    enum status rc = export_folder(o.export_dir, o.out_dir, o.dtype, &err);
    return rc ? fail(rc, &err, "export") : 0;
}
