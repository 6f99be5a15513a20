// Replays a corpus through a fuzz target in builds without libFuzzer: every file of a folder, every prefix of it (of
// long files about PREFIXES of them), and every prefix once more with its last byte flipped. Each input lies in a block
// of its exact size, so that a sanitizer sees the first byte read too far.
//   fuzz_X FOLDER
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/fuzz/fuzz.h"

#define FILE_MAX ((size_t)16 << 20)
#define PREFIXES 300

static long n_inputs;

static void feed(const char *data, size_t n, int flip)
{
    uint8_t *exact = malloc(n ? n : 1);
    if (!exact)
        abort();
    if (n) {
        memcpy(exact, data, n);
        exact[n - 1] ^= (uint8_t)flip;
    }
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    n_inputs++;
}

static bool replay_file(const char *folder, const char *name)
{
    char path[4096], *data;
    size_t n;
    struct error err;
    if (file_join(path, sizeof(path), folder, name, &err) != STATUS_OK ||
        file_read(path, FILE_MAX, &data, &n, &err) != STATUS_OK) {
        fprintf(stderr, "%s\n", err.text);
        return false;
    }
    feed(data, n, 0);
    for (size_t cut = 0; cut < n; cut += 1 + n / PREFIXES) {
        feed(data, cut, 0);
        feed(data, cut, 1 << (cut % 8));
    }
    free(data);
    return true;
}

int main(int argc, char **argv)
{
    DIR *d = argc == 2 ? opendir(argv[1]) : NULL;
    int n_files = 0;
    bool ok = true;
    if (!d) {
        fprintf(stderr, "usage: %s FOLDER (of inputs)\n", argv[0]);
        return 2;
    }
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            ok = replay_file(argv[1], e->d_name) && ok;
            n_files++;
        }
    closedir(d);
    printf("%d files, %ld inputs\n", n_files, n_inputs);
    return ok && n_files > 0 ? 0 : 1;
}
