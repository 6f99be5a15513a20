// base/runconfig.h fed with files and overrides from nowhere. An input that starts with '=' is an override on top of a
// small configuration that is right, any other is a file. What is accepted must print, and read back to the same bytes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/runconfig.h"
#include "tests/fuzz/fuzz.h"

static const char good[] = "model: {hidden: 8, n_layers: 1, n_heads: 2, ffn: 8}\n"
                           "tasks: [{name: a, url: 'http://h'}]\nstages: [{kind: rl}]\n";

// A file without a file system.
static int file_of(const void *data, size_t n, char path[64])
{
    int fd = memfd_create("config", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        abort();
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char path[64];
    const char *files[] = {path};
    struct run_config *c = malloc(sizeof(*c)), *back = malloc(sizeof(*back));
    struct error err;
    bool override = n > 0 && data[0] == '=';
    char *text = malloc(n + 1);
    if (!c || !back || !text)
        abort();
    memcpy(text, data, n);
    text[n] = 0;
    const char *overrides[] = {text + 1};
    int fd = override ? file_of(good, sizeof(good) - 1, path) : file_of(data, n, path);
    enum status rc = runconfig_load(files, 1, overrides, override, c, &err);
    close(fd);
    if (rc == STATUS_OK) {
        struct buf b = {0};
        runconfig_print(c, &b);
        fd = file_of(b.data, b.len, path);
        if (runconfig_load(files, 1, NULL, 0, back, &err) != STATUS_OK || memcmp(c, back, sizeof(*c)) != 0)
            abort();
        close(fd);
        buf_done(&b);
    }
    free(text);
    free(back);
    free(c);
    return 0;
}
