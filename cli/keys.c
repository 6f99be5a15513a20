// `ooze keys`: the CURVE keys of a run that listens for engines of other hosts. See proto/wire.h for what they protect: whoever holds
// a listed key is an engine of the run, and trusted as one.
//   RUN/keys/server.key   of the orchestrator, 0600
//   RUN/keys/allowed      public keys of the engines that are admitted, one a line with the engine's name; read at each handshake
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/command.h"
#include "cli/run_dir.h"
#include "proto/keys.h"
#include "proto/wire.h"

#define ALLOWED_MAX  ((size_t)1 << 20)
#define NAME_LONGEST 47 // of an engine: as ooze-rollout takes them

static const char usage[] = "usage: ooze keys RUN\n"
                            "       ooze keys RUN NAME OUT\n\n"
                            "For a run with orchestrator.listen, whose engines may run on other hosts. The "
                            "first form prints the run's "
                            "public key (and\n"
                            "makes the pair when there is none yet). The second makes a key for the engine "
                            "NAME, admits it to the run "
                            "and writes OUT, a\n"
                            "join folder. Copy OUT to the other host by a way you trust and start there\n\n"
                            "  ooze-rollout --connect tcp://HOST:PORT --run OUT --name NAME\n\n"
                            "HOST:PORT is where the run listens: RUN/orchestrator.listen. A key is withdrawn "
                            "by removing its line from "
                            "RUN/keys/allowed;\n"
                            "a connection that stands lasts until it is cut.\n\n"
                            "Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

// "engine-<i>" of a process that the run starts itself?
static bool name_is_own(const char *name, const struct run_config *c)
{
    int i, end = 0;
    return sscanf(name, "engine-%d%n", &i, &end) == 1 && !name[end] && i < c->rollout.engines;
}

static bool name_fits(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    return name[0] && name[0] != '.' && strlen(name) <= NAME_LONGEST && strspn(name, letters) == strlen(name);
}

// Is there a line for this name in the text of keys/allowed?
static bool is_listed(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *line = text; line; line = (line = strchr(line, '\n')) ? line + 1 : NULL) {
        size_t key = strcspn(line, " \t\r\n");
        const char *word = line + key + strspn(line + key, " \t");
        if (key == 40 && strcspn(word, " \t\r\n") == n && strncmp(word, name, n) == 0)
            return true;
    }
    return false;
}

// Adds KEY NAME to the list; with key NULL only asks whether NAME is free.
static enum status admit(const char *run_dir, const char *name, const char *key, struct error *err)
{
    char path[RUNCONFIG_PATH + 32], *text = NULL;
    struct buf b = {0};
    enum status rc = file_join(path, sizeof path, run_dir, "keys/allowed", err);
    if (!rc && file_exists(path))
        rc = file_read(path, ALLOWED_MAX, &text, NULL, err);
    if (!rc && text && is_listed(text, name))
        rc = error_set(err, STATUS_EXISTS,
                       "%s has a line for %s already: remove it to withdraw that key, or take another name",
                       path, name);
    if (!rc && key) {
        if (text)
            buf_puts(&b, text);
        if (b.len && b.data[b.len - 1] != '\n')
            buf_puts(&b, "\n");
        buf_puts(&b, key);
        buf_puts(&b, " ");
        buf_puts(&b, name);
        buf_puts(&b, "\n");
        rc = file_write_atomic(path, b.data, b.len, 0600, err);
    }
    buf_done(&b);
    free(text);
    return rc;
}

// OUT: what an engine needs to know of the run. Of the model only its shape; of the run's own secrets nothing: `token` is for this
// engine's own HTTP API.
static enum status write_join(const struct run_config *c, const char *run_dir, const char *out,
                              const struct keys *k, struct error *err)
{
    static const char *const shape[] = {"config.json", "generation_config.json"};
    char path[RUNCONFIG_PATH + 64];
    enum status rc = file_mkdirs(out, 0700, err);
    if (!rc && c->model.path[0] &&
        (!(rc = file_join(path, sizeof path, out, "model", err)) && !(rc = file_mkdirs(path, 0700, err))))
        for (size_t i = 0; !rc && i < sizeof shape / sizeof shape[0]; i++)
            rc = run_dir_copy(c->model.path, path, shape[i], err);
    if (rc || (rc = run_dir_copy(run_dir, out, "id", err)) || (rc = run_dir_secret(out, "token", err)) ||
        (rc = file_join(path, sizeof path, out, "client.key", err)) || (rc = keys_write(path, k, err)))
        return rc;
    struct run_config *copy = mem_must(1, sizeof *copy);
    *copy = *c;
    if (copy->model.path[0])
        snprintf(copy->model.path, sizeof copy->model.path, "model"); // below the folder, wherever it goes
    rc = run_dir_config(copy, out, err);
    free(copy);
    return rc;
}

static enum status make_client(const struct run_config *c, const char *run_dir, const char *server,
                               const char *name, const char *out, struct error *err)
{
    struct keys k = {"", "", ""};
    enum status rc = STATUS_OK;
    if (file_exists(out))
        return error_set(err, STATUS_EXISTS, "%s exists; a join folder is written anew", out);
    if ((rc = admit(run_dir, name, NULL, err)) || (rc = wire_keypair(k.public, k.secret, err)))
        return rc;
    snprintf(k.server, sizeof k.server, "%s", server);
    rc = write_join(c, run_dir, out, &k, err);
    if (!rc)
        rc = admit(run_dir, name, k.public, err);
    keys_wipe(&k);
    return rc;
}

static enum status make_keys(const struct run_config *c, const char *run_dir, int argc, char **argv,
                             struct error *err)
{
    struct keys server;
    enum status rc = run_dir_server_key(run_dir, &server, err);
    keys_wipe(&server);
    if (!rc && argc == 3)
        rc = make_client(c, run_dir, server.public, argv[1], argv[2], err);
    if (rc)
        return rc;
    if (argc == 1)
        printf("%s\n", server.public);
    if (!c->orchestrator.listen[0])
        fprintf(stderr,
                "ooze keys: note: this run has no orchestrator.listen, so nobody can connect from outside\n");
    return rc;
}

int command_keys(int argc, char **argv)
{
    char real[RUNCONFIG_PATH];
    struct run_config *c;
    struct error err;
    int n, rc = options_parse("keys", usage, NULL, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n != 1 && n != 3) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (run_dir_real(argv[0], real, &err) || run_load(real, &c, &err))
        return command_fail("keys", &err);
    if (n == 3 && (!name_fits(argv[1]) || name_is_own(argv[1], c))) {
        error_set(&err, STATUS_INVALID,
                  "'%.60s' cannot be the name of an engine of another host: letters, digits, - _ . (at most "
                  "%d), and "
                  "none that the run starts itself",
                  argv[1], NAME_LONGEST);
        free(c);
        command_fail("keys", &err);
        return EXIT_USAGE;
    }
    enum status s = make_keys(c, real, n, argv, &err);
    free(c);
    return s ? command_fail("keys", &err) : EXIT_DONE;
}
