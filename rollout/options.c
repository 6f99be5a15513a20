// Reading the command line: see options.h.
#include "rollout/options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2

static const char HELP[] =
    "ooze-rollout - samples tokens from a language model\n"
    "\n"
    "Usage\n"
    "  ooze-rollout --run RUN --name NAME [--restarts N]\n"
    "  ooze-rollout --connect tcp://HOST:PORT --run JOINFOLDER --name NAME\n"
    "  ooze-rollout --model DIR [--dtype TYPE] [--http-port PORT] [--port-file FILE] [options]\n"
    "  ooze-rollout --model DIR --generate|--score [--dtype TYPE] [options] < requests > answers\n"
    "\n"
    "  The first form is started by `ooze run`: an engine of a run. It reads RUN/config.yaml, RUN/id and "
    "RUN/token, connects to\n"
    "  the run's orchestrator, takes its jobs and loads each new version of the weights beside the old one "
    "without stopping.\n"
    "  The second joins a run of another host: `ooze keys RUN NAME JOINFOLDER` there makes the folder, whose "
    "key admits this engine;\n"
    "  weights come over the connection. It ends by SIGTERM or Ctrl-C.\n"
    "  The third serves a Hugging Face folder by the native HTTP API, without a run.\n"
    "  The last answers JSON lines and ends: what `ooze generate` uses. This program speaks token ids, "
    "never text.\n"
    "\n"
    "Options\n"
    "  -r, --run DIR         run directory\n"
    "  -n, --name NAME       of this engine in its run: engine-0, engine-1, ...\n"
    "      --connect ADDR    orchestrator of a run on another host: tcp://HOST:PORT (there "
    "RUN/orchestrator.listen)\n"
    "      --restarts N      how often the supervisor has started this process before (told to the "
    "orchestrator)\n"
    "  -m, --model DIR       Hugging Face folder: config.json and *.safetensors (Llama, Qwen2 or Qwen3)\n"
    "  -d, --dtype TYPE      of the weights: fp8 (E4M3, 128x128 block scales; default), bf16 or f32\n"
    "  -g, --generate        each line {\"ids\":[...], \"max_new\":128, \"temperature\":1, \"top_p\":1, "
    "\"top_k\":0, \"min_p\":0,\n"
    "                        \"min_new\":0, \"stop_token_ids\":[], \"ignore_eos\":false, \"seed\":1} is "
    "answered by a line\n"
    "                        {\"output_ids\":[...], \"logprobs\":[...], \"finish\":\"stop\"|\"length\", ...} "
    "or {\"error\":\"...\"}\n"
    "  -s, --score           each line {\"ids\":[...], \"temperature\":1} is answered by {\"logprobs\":[0, "
    "...]}: the\n"
    "                        log-probability of each id given those before it\n"
    "  -p, --http-port PORT  of the HTTP API; 0 (default) takes any free one\n"
    "      --http-host HOST  address to bind (127.0.0.1)\n"
    "      --port-file FILE  the port is written there once the model is loaded\n"
    "      --token-file FILE holds a token that calls which change the engine must carry as bearer (default: "
    "none needed);\n"
    "                        with a --http-host that other hosts reach there must be one, and /generate "
    "needs "
    "it too\n"
    "  -t, --threads N       of the forward pass (default: all cores; with --connect the run's "
    "rollout.threads)\n"
    "      --isa CLASS       highest kernel class to use: auto (default), ref, avx2, avx512, avx512bf16, "
    "amx\n"
    "      --kv-tokens N     capacity of the KV cache (65536)\n"
    "      --kv-dtype TYPE   of keys and values: auto (default; bf16 beside bf16 weights, else f32), f32, "
    "bf16 or fp8\n"
    "      --max-running N   sequences at once (256)\n"
    "      --max-batch-tokens N, --prefill-chunk N, --page-tokens N   as in docs/configuration.md (2048, "
    "512, 32)\n"
    "  Options from --isa on belong to --model, like --dtype: an engine of a run has these from the run's "
    "configuration.\n"
    "  -v, --verbose         log at level debug\n"
    "  -h, --help            this text\n"
    "  -V, --version         version and compiler\n"
    "\n"
    "HTTP API\n"
    "  POST /generate {\"input_ids\":[...], \"sampling_params\":{...}, \"return_logprob\":false, "
    "\"stream\":false, \"rid\":\"...\"}\n"
    "  GET  /health  /get_weight_version  /metrics\n"
    "  POST /abort_request  /pause_generation  /continue_generation  /flush_cache  "
    "/update_weights_from_disk\n"
    "  (see docs/protocols.md; in a run the calls of the last line need the run's token, but for aborting "
    "one's own rid, and\n"
    "  updating weights and aborting everything are refused)\n"
    "\n"
    "Files\n"
    "  RUN/NAME.http         port of the HTTP API of an engine of a run (rollout.http)\n"
    "\n"
    "Signals\n"
    "  SIGTERM ends the process with status 0 after the step it computes: an engine of a run tells the "
    "orchestrator what was\n"
    "  sampled and that it leaves, for at most 3 s; what is not told is sampled again elsewhere with the "
    "same "
    "draws. In a run of\n"
    "  this host SIGINT is ignored: `ooze run` decides what Ctrl-C means. The process ends with its parent.\n"
    "\n"
    "Exit status\n"
    "  0 done or stopped, 1 failure (logged once to standard error), 2 bad usage or configuration\n";

enum { // long options without a letter
    OPT_RESTARTS = 256,
    OPT_CONNECT,
    OPT_HTTP_HOST,
    OPT_PORT_FILE,
    OPT_TOKEN_FILE,
    OPT_ISA,
    OPT_KV_TOKENS,
    OPT_KV_DTYPE,
    OPT_MAX_RUNNING,
    OPT_MAX_BATCH_TOKENS,
    OPT_PREFILL_CHUNK,
    OPT_PAGE_TOKENS,
    N_OPTIONS,
};

static const struct option LONGS[] = {{"run", required_argument, NULL, 'r'},
                                      {"name", required_argument, NULL, 'n'},
                                      {"connect", required_argument, NULL, OPT_CONNECT},
                                      {"restarts", required_argument, NULL, OPT_RESTARTS},
                                      {"model", required_argument, NULL, 'm'},
                                      {"dtype", required_argument, NULL, 'd'},
                                      {"generate", no_argument, NULL, 'g'},
                                      {"score", no_argument, NULL, 's'},
                                      {"http-port", required_argument, NULL, 'p'},
                                      {"http-host", required_argument, NULL, OPT_HTTP_HOST},
                                      {"port-file", required_argument, NULL, OPT_PORT_FILE},
                                      {"token-file", required_argument, NULL, OPT_TOKEN_FILE},
                                      {"threads", required_argument, NULL, 't'},
                                      {"isa", required_argument, NULL, OPT_ISA},
                                      {"kv-tokens", required_argument, NULL, OPT_KV_TOKENS},
                                      {"kv-dtype", required_argument, NULL, OPT_KV_DTYPE},
                                      {"max-running", required_argument, NULL, OPT_MAX_RUNNING},
                                      {"max-batch-tokens", required_argument, NULL, OPT_MAX_BATCH_TOKENS},
                                      {"prefill-chunk", required_argument, NULL, OPT_PREFILL_CHUNK},
                                      {"page-tokens", required_argument, NULL, OPT_PAGE_TOKENS},
                                      {"verbose", no_argument, NULL, 'v'},
                                      {"help", no_argument, NULL, 'h'},
                                      {"version", no_argument, NULL, 'V'},
                                      {NULL, 0, NULL, 0}};

static int usage(const char *what, const char *value)
{
    fprintf(stderr, "ooze-rollout: %s%s%s (see ooze-rollout --help)\n", what, *value ? ": " : "", value);
    return EXIT_USAGE;
}

static bool parse_number(const char *s, int64_t min, int64_t max, int64_t *ret)
{
    char *end;
    long long v = strtoll(s, &end, 10);
    if (!*s || *end || v < min || v > max)
        return false;
    *ret = v;
    return true;
}

static bool parse_count(const char *s, int32_t *ret)
{
    int64_t v;
    if (!parse_number(s, 1, 1 << 30, &v))
        return false;
    *ret = (int32_t)v;
    return true;
}

static bool parse_dtype(const char *s, enum dtype *ret)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"f32", DT_F32}, {"bf16", DT_BF16}, {"fp8", DT_FP8}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(s, names[i].name) == 0) {
            *ret = names[i].dtype;
            return true;
        }
    return false;
}

static bool parse_kv_dtype(const char *s, enum kv_choice *ret)
{
    static const char *const names[] = {
        [KV_AUTO] = "auto", [KV_F32] = "f32", [KV_BF16] = "bf16", [KV_FP8] = "fp8"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(s, names[i]) == 0) {
            *ret = (enum kv_choice)i;
            return true;
        }
    return false;
}

// The forms of the usage, and those that an option belongs to.
enum { FORM_RUN = 1, FORM_CONNECT = 2, FORM_SERVE = 4, FORM_LINES = 8, FORM_MODEL = FORM_SERVE | FORM_LINES };

static unsigned forms_of(int option)
{
    switch (option) {
    case 'r':
    case OPT_RESTARTS:
        return FORM_RUN | FORM_CONNECT;
    case 'n':
        return FORM_RUN | FORM_CONNECT | FORM_SERVE;
    case OPT_CONNECT:
        return FORM_CONNECT;
    case 't': // in a run, whose engines share this host's cores, rollout.threads
        return FORM_CONNECT | FORM_MODEL;
    case 'p':
    case OPT_HTTP_HOST:
    case OPT_PORT_FILE:
    case OPT_TOKEN_FILE:
        return FORM_SERVE;
    case 'v':
        return FORM_RUN | FORM_CONNECT | FORM_MODEL;
    default:
        return FORM_MODEL;
    }
}

static unsigned form_of(const struct options *o)
{
    return o->connect                 ? FORM_CONNECT
           : o->run_dir               ? FORM_RUN
           : o->mode == OPTIONS_SERVE ? FORM_SERVE
                                      : FORM_LINES;
}

// Is every given option one that this form looks at? false: it has been said which is not.
static bool belong(const bool given[N_OPTIONS], unsigned form)
{
    char name[64];
    for (const struct option *o = LONGS; o->name; o++) {
        if (!given[o->val] || forms_of(o->val) & form)
            continue;
        snprintf(name, sizeof name, "--%s", o->name);
        usage(form == FORM_RUN       ? "an engine of a run does not take"
              : form == FORM_CONNECT ? "an engine that joins a run does not take"
              : form == FORM_SERVE   ? "an engine without a run does not take"
                                     : "--generate and --score do not take",
              name);
        return false;
    }
    return true;
}

// false: bad value.
static bool set_option(struct options *o, int option, const char *value)
{
    int64_t n;
    switch (option) {
    case 'r':
        o->run_dir = value;
        return true;
    case 'n':
        o->name = value;
        return *value && strlen(value) < 48 && !strchr(value, '/');
    case 'm':
        o->model_dir = value;
        return true;
    case 'd':
        return parse_dtype(value, &o->dtype);
    case OPT_KV_DTYPE:
        return parse_kv_dtype(value, &o->engine.kv_dtype);
    case 'g':
        o->mode = OPTIONS_GENERATE;
        return true;
    case 's':
        o->mode = OPTIONS_SCORE;
        return true;
    case 'p':
        if (!parse_number(value, 0, 65535, &n))
            return false;
        o->http_port = (int)n;
        return true;
    case 't':
        if (!parse_number(value, 0, 1024, &n))
            return false;
        o->threads = (int)n;
        return true;
    case 'v':
        o->verbose = true;
        return true;
    case OPT_RESTARTS:
        return parse_number(value, 0, INT64_MAX, &o->restarts);
    case OPT_CONNECT:
        o->connect = value;
        return strncmp(value, "tcp://", 6) == 0 && value[6];
    case OPT_HTTP_HOST:
        o->http_host = value;
        return true;
    case OPT_PORT_FILE:
        o->port_file = value;
        return true;
    case OPT_TOKEN_FILE:
        o->token_file = value;
        return true;
    case OPT_ISA:
        o->isa = value;
        return true;
    case OPT_KV_TOKENS:
        return parse_count(value, &o->engine.kv_tokens);
    case OPT_MAX_RUNNING:
        return parse_count(value, &o->engine.max_running);
    case OPT_MAX_BATCH_TOKENS:
        return parse_count(value, &o->engine.max_batch_tokens);
    case OPT_PREFILL_CHUNK:
        return parse_count(value, &o->engine.prefill_chunk);
    case OPT_PAGE_TOKENS:
        return parse_count(value, &o->engine.page_tokens);
    default:
        return false;
    }
}

int options_parse(int argc, char **argv, struct options *ret)
{
    bool given[N_OPTIONS] = {false};
    *ret = (struct options){.mode = OPTIONS_SERVE, .dtype = DT_FP8, .isa = "auto"};
    for (int c, index = -1; (c = getopt_long(argc, argv, "r:n:m:d:gsp:t:vhV", LONGS, &index)) != -1;
         index = -1) {
        if (c == 'h') {
            fputs(HELP, stdout);
            return 0;
        }
        if (c == 'V') {
            puts("ooze-rollout " OOZE_VERSION " (" __VERSION__ ")");
            return 0;
        }
        if (c == '?')
            return usage("unknown option or missing value", "");
        if (!set_option(ret, c, optarg ? optarg : ""))
            return usage("not a value for this option", optarg ? optarg : "");
        given[c] = true;
    }
    if (optind < argc)
        return usage("unexpected argument", argv[optind]);
    if (!ret->run_dir == !ret->model_dir)
        return usage("name either --run RUN or --model DIR", "");
    if (given['g'] && given['s'])
        return usage("name either --generate or --score", "");
    if (ret->connect && (!ret->run_dir || !ret->name))
        return usage("--connect wants --run JOINFOLDER and --name NAME", "");
    if (!belong(given, form_of(ret)))
        return EXIT_USAGE;
    if (!ret->name)
        ret->name = "engine-0";
    if (ret->run_dir)
        ret->mode = OPTIONS_RUN;
    return -1;
}
