// Files: whole-file reads and writes that are either all there or not there at all.
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// Whole file, NUL-terminated (the NUL not counted); larger than max_bytes is STATUS_LIMIT. free() the result.
enum status file_read(const char *path, size_t max_bytes, char **ret_data, size_t *ret_len,
                      struct error *err) OOZE_MUST_USE;

// Temporary name in the same folder, write, fsync, rename, fsync the folder: readers see the old or the new
// bytes.
enum status file_write_atomic(const char *path, const void *data, size_t n, unsigned mode,
                              struct error *err) OOZE_MUST_USE;

// The same in steps, for streams: file_atomic_open, write(fd) as often as wanted, then commit or abandon.
struct file_atomic {
    int fd;
    char tmp[4096];
    char path[4096];
};
enum status file_atomic_open(struct file_atomic *f, const char *path, unsigned mode,
                             struct error *err) OOZE_MUST_USE;
enum status file_atomic_write(struct file_atomic *f, const void *p, size_t n,
                              struct error *err) OOZE_MUST_USE;
enum status file_atomic_commit(struct file_atomic *f, struct error *err) OOZE_MUST_USE;
void file_atomic_abandon(struct file_atomic *f); // removes the temporary; fine after commit

// mkdir -p; existing directories are fine.
enum status file_mkdirs(const char *path, unsigned mode, struct error *err) OOZE_MUST_USE;
bool file_exists(const char *path);
// Removes a file or a whole tree below path; a missing path is fine.
enum status file_remove_tree(const char *path, struct error *err) OOZE_MUST_USE;
// snprintf of "dir/name" that fails instead of truncating.
enum status file_join(char *ret, size_t n, const char *dir, const char *name,
                      struct error *err) OOZE_MUST_USE;

// A shared lock (flock) on an open file, without waiting, which whoever writes a published file again respects (model/kept.h), and
// the certainty that path names that file now, under the lock. It ends with the last descriptor and map of this open. STATUS_AGAIN:
// being written, or another file has the name. On a file system without locks only the name is looked at.
enum status file_share(int fd, const char *path, struct error *err) OOZE_MUST_USE;

// Read-only memory map of a whole file, with file_share for as long as it is mapped. O_NOFOLLOW when nofollow is set.
struct file_map {
    const uint8_t *data; // NULL for an empty file
    size_t len;
};
enum status file_map_open(const char *path, bool nofollow, struct file_map *ret_map,
                          struct error *err) OOZE_MUST_USE;
void file_map_close(struct file_map *m);

#endif
