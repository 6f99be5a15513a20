// A run directory: see run_dir.h. Everything is written before config.yaml, whose presence makes the directory a run.
#include "cli/run_dir.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "proto/wire.h"
#include "text/tokenizer.h"

enum status run_dir_real(const char *path, char ret_real[RUNCONFIG_PATH], struct error *err)
{
    char *real = realpath(path, NULL);
    if (!real)
        return error_errno(err, errno, "run directory %s", path);
    enum status rc = STATUS_OK;
    if (snprintf(ret_real, RUNCONFIG_PATH, "%s", real) >= RUNCONFIG_PATH)
        rc = error_set(err, STATUS_LIMIT, "path too long: %.100s…", real);
    free(real);
    return rc;
}

enum status run_dir_secret(const char *dir, const char *name, struct error *err)
{
    unsigned char bits[16];
    char path[RUNCONFIG_PATH + 64], text[40];
    enum status rc = file_join(path, sizeof path, dir, name, err);
    if (rc)
        return rc;
    if (getrandom(bits, sizeof bits, 0) != (ssize_t)sizeof bits)
        return error_errno(err, errno, "random bits");
    for (size_t i = 0; i < sizeof bits; i++)
        snprintf(text + 2 * i, 3, "%02x", bits[i]);
    text[32] = '\n';
    return file_write_atomic(path, text, 33, 0600, err);
}

enum status run_dir_copy(const char *from_dir, const char *to_dir, const char *name, struct error *err)
{
    char from[RUNCONFIG_PATH + 64], to[RUNCONFIG_PATH + 64], *data;
    size_t n;
    enum status rc;
    if ((rc = file_join(from, sizeof from, from_dir, name, err)) ||
        (rc = file_join(to, sizeof to, to_dir, name, err)))
        return rc;
    if (!file_exists(from))
        return STATUS_OK;
    if ((rc = file_read(from, (size_t)256 << 20, &data, &n, err)))
        return rc;
    rc = file_write_atomic(to, data, n, 0600, err);
    free(data);
    return rc;
}

// Every id that the tokenizer can give must be a row of the model's embedding: found here, not by an engine in mid-run.
static enum status check_vocabulary(const struct run_config *c, const struct tokenizer *t, struct error *err)
{
    char path[RUNCONFIG_PATH + 64];
    int64_t rows = c->model.vocab;
    enum status rc;
    if (c->model.path[0]) {
        json_t *j;
        if ((rc = file_join(path, sizeof path, c->model.path, "config.json", err)) ||
            (rc = json_parse_file(path, 16 << 20, &j, err)))
            return rc;
        rc = json_get_int(j, "vocab_size", true, 0, 1, INT32_MAX, path, &rows, err);
        json_decref(j);
        if (rc)
            return rc;
    }
    if (tokenizer_vocab_size(t) > rows)
        return error_set(err, STATUS_INVALID, "the tokenizer has ids up to %d, the model only %lld rows: %s",
                         (int)tokenizer_vocab_size(t) - 1, (long long)rows,
                         c->model.path[0] ? "model.tokenizer belongs to another model"
                                          : "raise model.vocab (0 fits it to the byte tokenizer)");
    return STATUS_OK;
}

// RUN/tokenizer: the byte tokenizer with its specials, or the files of the model folder.
static enum status write_tokenizer(const struct run_config *c, const char *dir, struct error *err)
{
    static const char *const files[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "chat_template.jinja",
                                        "generation_config.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "config.json"};
    enum status rc;
    struct tokenizer *t;
    if (strcmp(c->model.tokenizer, "bytes") == 0) {
        const char *specials[RUNCONFIG_SPECIALS];
        for (int64_t i = 0; i < c->model.n_specials; i++)
            specials[i] = c->model.specials[i];
        rc = tokenizer_open_bytes(specials, (size_t)c->model.n_specials, &t, err);
        if (rc)
            return error_prefix(err, "model.specials");
        rc = check_vocabulary(c, t, err);
        rc = rc ? rc : tokenizer_save(t, dir, err);
        tokenizer_close(t);
        return rc;
    }
    const char *from = c->model.tokenizer[0] ? c->model.tokenizer : c->model.path;
    if (!from[0])
        return error_set(
            err, STATUS_INVALID,
            "model.tokenizer is not given: a model without model.path needs a tokenizer folder or \"bytes\"");
    if ((rc =
             tokenizer_open(from, &t, err))) // refuse a tokenizer we cannot read now, not in the orchestrator
        return rc;
    rc = check_vocabulary(c, t, err);
    tokenizer_close(t);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if ((rc = run_dir_copy(from, dir, files[i], err)))
            return rc;
    return STATUS_OK;
}

enum status run_dir_config(const struct run_config *c, const char *dir, struct error *err)
{
    char path[RUNCONFIG_PATH + 64];
    struct buf yaml = {0};
    enum status rc = file_join(path, sizeof path, dir, "config.yaml", err);
    if (rc)
        return rc;
    runconfig_print(c, &yaml);
    rc = file_write_atomic(path, yaml.data, yaml.len, 0600, err);
    buf_done(&yaml);
    return rc;
}

enum status run_dir_server_key(const char *dir, struct keys *ret, struct error *err)
{
    char folder[RUNCONFIG_PATH + 64], path[RUNCONFIG_PATH + 64];
    struct keys k = {"", "", ""};
    enum status rc;
    if ((rc = file_join(folder, sizeof folder, dir, "keys", err)) || (rc = file_mkdirs(folder, 0700, err)) ||
        (rc = file_join(path, sizeof path, folder, "server.key", err)))
        return rc;
    if (!file_exists(path) &&
        ((rc = wire_keypair(k.public, k.secret, err)) || (rc = keys_write(path, &k, err))))
        return rc;
    keys_wipe(&k);
    return keys_read(path, false, ret, err);
}

enum status run_dir_create(const struct run_config *c, char ret_real[RUNCONFIG_PATH], struct error *err)
{
    static const char *const folders[] = {"tokenizer", "tasks", "checkpoints", "weights", "logs"};
    char path[RUNCONFIG_PATH + 64];
    enum status rc = file_mkdirs(c->run_dir, 0700, err);
    if (rc || (rc = run_dir_real(c->run_dir, ret_real, err)) ||
        (rc = file_join(path, sizeof path, ret_real, "config.yaml", err)))
        return rc;
    if (file_exists(path))
        return error_set(err, STATUS_EXISTS,
                         "%s already holds a run: `ooze resume %s` goes on with it, another run needs "
                         "another name or run_dir",
                         c->run_dir, c->run_dir);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        if ((rc = file_join(path, sizeof path, ret_real, folders[i], err)) ||
            (rc = file_mkdirs(path, 0700, err)))
            return rc;
        if (i == 0 && (rc = write_tokenizer(c, path, err)))
            return rc;
    }
    struct keys server;
    if ((rc = run_dir_secret(ret_real, "id", err)) || (rc = run_dir_secret(ret_real, "token", err)) ||
        (c->orchestrator.listen[0] && (rc = run_dir_server_key(ret_real, &server, err))))
        return rc;
    keys_wipe(&server);
    struct run_config *copy = mem_must(1, sizeof *copy);
    *copy = *c;
    snprintf(copy->run_dir, sizeof copy->run_dir, "%s", ret_real);
    rc = run_dir_config(copy, ret_real, err);
    free(copy);
    return rc;
}
