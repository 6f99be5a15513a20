// Keys on disk: see keys.h. No state; any thread.
#include "proto/keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

#define FILE_MAX 4096
#define KEY_Z85  40

// Takes `line` when it is "WORD KEY"; whether the key is one is for wire_bind and wire_connect to say.
static void take_key(const char *line, const char *word, char ret[41])
{
    size_t n = strlen(word);
    if (strncmp(line, word, n) != 0 || (line[n] != ' ' && line[n] != '\t'))
        return;
    line += n + strspn(line + n, " \t");
    if (strcspn(line, " \t\r\n") != KEY_Z85)
        return;
    memcpy(ret, line, KEY_Z85);
    ret[KEY_Z85] = 0;
}

enum status keys_read(const char *path, bool want_server, struct keys *ret, struct error *err)
{
    char *text = NULL;
    size_t n;
    struct keys k = {"", "", ""};
    enum status rc = file_read(path, FILE_MAX, &text, &n, err);
    if (rc != STATUS_OK)
        return rc;
    for (const char *line = text; line; line = (line = strchr(line, '\n')) ? line + 1 : NULL) {
        take_key(line, "public", k.public);
        take_key(line, "secret", k.secret);
        take_key(line, "server", k.server);
    }
    explicit_bzero(text, n);
    free(text);
    const char *missing = !k.public[0]                  ? "public"
                          : !k.secret[0]                ? "secret"
                          : want_server && !k.server[0] ? "server"
                                                        : NULL;
    if (missing)
        rc = error_set(err, STATUS_INVALID,
                       "%s: no line \"%s KEY\" with 40 characters of Z85; `ooze keys` makes such files", path,
                       missing);
    else
        *ret = k;
    keys_wipe(&k);
    return rc;
}

enum status keys_write(const char *path, const struct keys *k, struct error *err)
{
    char text[FILE_MAX];
    int n = snprintf(text, sizeof text, "public %s\nsecret %s\n", k->public, k->secret);
    if (k->server[0])
        n += snprintf(text + n, sizeof text - (size_t)n, "server %s\n", k->server);
    enum status rc = file_write_atomic(path, text, (size_t)n, 0600, err);
    explicit_bzero(text, sizeof text);
    return rc;
}

void keys_wipe(struct keys *k)
{
    explicit_bzero(k->secret, sizeof k->secret);
}
