// What every command shares: see command.h. One thread, no state.
#include "cli/command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "ledger/ledger.h"
#include "ledger/reader.h"
#include "proto/wire.h"

int command_fail(const char *command, const struct error *err)
{
    fprintf(stderr, "ooze %s: %s\n", command, err->text);
    return EXIT_FAILED;
}

static const struct option_spec *find_option(const struct option_spec *specs, const char *name, size_t n)
{
    for (; specs && specs->name; specs++)
        if (strlen(specs->name) == n && !memcmp(specs->name, name, n))
            return specs;
    return NULL;
}

int options_parse(const char *command, const char *usage, const struct option_spec *specs, int argc,
                  char **argv, int *ret_n)
{
    int n = 0;
    bool plain = false;
    for (int i = 0; i < argc; i++) {
        char *a = argv[i];
        if (plain || a[0] != '-' || !a[1]) {
            argv[n++] = a;
            continue;
        }
        if (!strcmp(a, "--")) {
            plain = true;
            continue;
        }
        if (!strcmp(a, "-h") || !strcmp(a, "--help")) {
            fputs(usage, stdout);
            return EXIT_DONE;
        }
        char *eq = strchr(a, '=');
        const struct option_spec *s =
            a[1] == '-' ? find_option(specs, a + 2, eq ? (size_t)(eq - a - 2) : strlen(a + 2)) : NULL;
        if (!s || (s->flag && eq) || (s->value && !eq && i + 1 >= argc)) {
            fprintf(stderr, "ooze %s: %s %s\n%s", command, s ? "wrong use of option" : "no option", a, usage);
            return EXIT_USAGE;
        }
        if (s->flag)
            *s->flag = true;
        else
            *s->value = eq ? eq + 1 : argv[++i];
    }
    *ret_n = n;
    return -1;
}

enum status run_load(const char *run_dir, struct run_config **ret, struct error *err)
{
    char path[RUNCONFIG_PATH + 32];
    enum status rc = file_join(path, sizeof path, run_dir, "config.yaml", err);
    if (rc)
        return rc;
    if (!file_exists(path))
        return error_set(err, STATUS_NOTFOUND,
                         "%s is not a run directory (no config.yaml there); `ooze run CONFIG.yaml` makes one",
                         run_dir);
    struct run_config *c = mem_must(1, sizeof *c);
    if ((rc = runconfig_load_run(run_dir, c, err))) {
        free(c);
        return rc;
    }
    *ret = c;
    return STATUS_OK;
}

enum status run_id(const char *run_dir, char ret[64], struct error *err)
{
    char path[RUNCONFIG_PATH + 32], *text;
    enum status rc = file_join(path, sizeof path, run_dir, "id", err);
    if (rc || (rc = file_read(path, 63, &text, NULL, err)))
        return rc;
    text[strcspn(text, "\r\n")] = 0;
    snprintf(ret, 64, "%s", text);
    free(text);
    return STATUS_OK;
}

int64_t run_owner(const char *run_dir)
{
    char path[RUNCONFIG_PATH + 32], text[32] = "";
    struct error err;
    if (file_join(path, sizeof path, run_dir, "lock", &err))
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    bool held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    ssize_t n = held ? read(fd, text, sizeof text - 1) : 0;
    close(fd);
    return n > 0 ? strtoll(text, NULL, 10) : 0;
}

enum status run_checkpoint(const char *run_dir, const char *wanted, char *ret, unsigned long n,
                           struct error *err)
{
    struct ledger *l;
    struct ledger_state s;
    enum status rc;
    if (wanted) {
        char name[RUNCONFIG_PATH];
        if (strchr(wanted, '/'))
            snprintf(name, sizeof name, "%s", wanted);
        else
            snprintf(name, sizeof name, "%s/checkpoints/%s%s", run_dir,
                     strncmp(wanted, "step-", 5) ? "step-" : "", wanted);
        if (!file_exists(name))
            return error_set(err, STATUS_NOTFOUND,
                             "no checkpoint %s; %s/checkpoints has those that were kept", name, run_dir);
        snprintf(ret, n, "%s", name);
        return STATUS_OK;
    }
    if ((rc = ledger_open_readonly(run_dir, &l, err)))
        return rc;
    rc = ledger_state_read(l, &s, err);
    ledger_close(l);
    if (rc)
        return rc;
    if (!s.has_checkpoint)
        return error_set(err, STATUS_NOTFOUND,
                         "%s has no checkpoint yet; one is written at each stage's end and every "
                         "trainer.checkpoint_every steps",
                         run_dir);
    snprintf(ret, n, "%s", s.checkpoint.path);
    if (!file_exists(ret)) { // the run directory was moved: the same folder below it
        const char *base = strrchr(s.checkpoint.path, '/');
        snprintf(ret, n, "%s/checkpoints%s", run_dir, base ? base : "");
    }
    if (!file_exists(ret))
        return error_set(err, STATUS_NOTFOUND, "checkpoint %s is recorded but gone", s.checkpoint.path);
    return STATUS_OK;
}

enum status program_path(const char *name, char *ret, unsigned long n, struct error *err)
{
    char self[RUNCONFIG_PATH];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0)
        return error_errno(err, errno, "finding our own program");
    self[len] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    enum status rc = file_join(ret, n, self, name, err);
    if (!rc && access(ret, X_OK) < 0)
        rc = error_errno(err, errno, "program %s", ret);
    return rc;
}

enum status query_run(const char *run_dir, const char *verb, const json_t *args, int timeout_ms, json_t **ret,
                      struct error *err)
{
    char socket[256], endpoint[280], name[64], *text = args ? json_text(args) : mem_strdup("{}");
    struct wire *w = NULL;
    struct msg m = {.type = MSG_QUERY, .query = {.id = (uint64_t)getpid(), .verb = verb, .args = text}};
    int64_t deadline = clock_mono_ms(clock_system()) + timeout_ms;
    enum status rc = run_socket(run_dir, "orch", socket, sizeof socket, err);
    if (rc)
        goto out;
    snprintf(endpoint, sizeof endpoint, "ipc://%s", socket);
    snprintf(name, sizeof name, "cli-%d", (int)getpid());
    if ((rc = wire_connect(endpoint, name, NULL, &w, err)) || (rc = wire_send(w, NULL, &m, err)))
        goto out;
    for (;;) {
        int64_t left = deadline - clock_mono_ms(clock_system());
        rc = left > 0 ? wire_wait(w, (int)left, err) : STATUS_TIMEOUT;
        if (rc == STATUS_TIMEOUT) {
            rc = error_set(
                err, STATUS_PEER,
                "the orchestrator of %s did not answer within %d ms; is the run going? (`ooze resume %s`)",
                run_dir, timeout_ms, run_dir);
            goto out;
        }
        if (rc || ((rc = wire_recv(w, NULL, &m, err)) && rc != STATUS_AGAIN))
            goto out;
        if (!rc && m.type == MSG_REPLY)
            break;
    }
    if (m.reply.status) {
        json_t *j;
        const char *why = m.reply.json;
        struct error none;
        if (!json_parse(m.reply.json, strlen(m.reply.json), "reply", &j, &none)) {
            const char *inner = json_string_value(json_object_get(j, "error"));
            rc = error_set(err, (enum status)m.reply.status, "%s", inner ? inner : why);
            json_decref(j);
        } else {
            rc = error_set(err, (enum status)m.reply.status, "%s", why);
        }
    } else {
        rc = json_parse(m.reply.json, strlen(m.reply.json), "reply of the orchestrator", ret, err);
    }
out:
    free(text);
    wire_close(w);
    return rc;
}
