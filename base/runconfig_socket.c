// Where the sockets of a run live: see run_socket in runconfig.h. AF_UNIX paths end at 107 bytes, run
// directories do not. Any thread, any process; the file system is the only state.
//
// Invariants
//   1. Every process of a run gets the same folder: a run directory too long for its own sockets holds a
//   symbolic link
//      RUN/sock, and the first process to make that link decides for all, whatever their environments say.
//   2. The folder belongs to us and nobody else may enter it (0700), else no path is given out.
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/runconfig.h"

#define NAME_MAX_BYTES 40 // of one socket; the folder is chosen without looking at the name
#define FOLDER_MAX     (sizeof(((struct sockaddr_un *)0)->sun_path) - 1 - 1 - NAME_MAX_BYTES)

static enum status make_private(const char *dir, struct error *err)
{
    struct stat st;
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return error_errno(err, errno, "making the folder of the sockets, %s", dir);
    if (lstat(dir, &st) != 0)
        return error_errno(err, errno, "looking at %s", dir);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return error_set(err, STATUS_REFUSED, "%s is not a folder of ours: remove it", dir);
    if ((st.st_mode & 077) && chmod(dir, 0700) != 0)
        return error_errno(err, errno, "closing %s to others", dir);
    return STATUS_OK;
}

// RUN/sock is, or becomes, a link to a short folder.
static enum status short_folder(const char *run, const char *link, char *ret, size_t n, struct error *err)
{
    char wanted[256];
    const char *base = getenv("XDG_RUNTIME_DIR");
    if (!base || base[0] != '/' || strlen(base) + 32 > FOLDER_MAX)
        base = "/tmp";
    snprintf(wanted, sizeof(wanted), "%s/ooze-%016llx", base, (unsigned long long)hash64(run, strlen(run)));
    if (symlink(wanted, link) != 0 && errno != EEXIST)
        return error_errno(err, errno, "making %s", link);
    ssize_t got = readlink(link, ret, n);
    if (got < 0)
        return error_errno(err, errno, "reading the link %s", link);
    if ((size_t)got >= n || (size_t)got > FOLDER_MAX)
        return error_set(err, STATUS_INVALID, "%s leads to a folder too long for sockets: remove it", link);
    ret[got] = 0;
    return make_private(ret, err);
}

enum status run_socket(const char *run_dir, const char *name, char *ret, unsigned long n, struct error *err)
{
    char run[PATH_MAX], own[PATH_MAX + 8], folder[PATH_MAX + 8];
    enum status rc;
    if (!*name || strlen(name) > NAME_MAX_BYTES || strchr(name, '/'))
        return error_set(err, STATUS_INVALID, "'%.64s' is no name for a socket", name);
    if (!realpath(run_dir, run))
        return error_errno(err, errno, "run directory %s", run_dir);
    snprintf(own, sizeof(own), "%s/sock", run);
    if (strlen(own) <= FOLDER_MAX) {
        snprintf(folder, sizeof(folder), "%s", own);
        rc = make_private(folder, err);
    } else {
        rc = short_folder(run, own, folder, sizeof(folder), err);
    }
    if (rc != STATUS_OK)
        return rc;
    if (snprintf(ret, n, "%s/%s", folder, name) >= (int)n)
        return error_set(err, STATUS_LIMIT, "no room for the path of socket %s", name);
    return STATUS_OK;
}
