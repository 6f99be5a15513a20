// Maps of weights files that outlive a version. A published file's pages go round: the trainer writes the next version into those of
// the version that left (folder.h, weights_file_rewrite). Mapping 160 MB page by page takes as long as filling it, so writer and
// readers keep their maps, and find them again by the file's device and inode.
//
// A map that is kept says nothing about who reads. A lock does (flock(2); the kernel takes it back from whoever dies):
//   reader   holds it shared while it reads, and has made sure under the lock that the path still names this file
//   writer   takes the path away first (rename), then the lock, exclusively and without waiting; who does not get it leaves the file
//            to its readers and takes fresh pages. It lets go before the file gets its new name.
// So a reader sees the whole of one version, or finds no file. Whoever maps or opens such files otherwise must hold the lock too:
// file_map_open and file_share (base/file.h) do.
//
// One thread owns a struct kept. {0} holds nothing.
#ifndef MODEL_KEPT_H
#define MODEL_KEPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/pool.h"
#include "base/status.h"

#define KEPT_MAPS 16 // the one not used for longest goes

struct kept_map {
    dev_t dev;
    ino_t ino;
    int fd;
    bool held;     // and locked
    char *data;    // NULL: this entry is free
    size_t mapped; // bytes; the file may end before
    size_t there;  // writer: bytes from the beginning that have pages
    uint64_t used;
};

struct kept {
    struct kept_map maps[KEPT_MAPS];
    uint64_t clock;
};

// Lets go of all maps; none may be held.
void kept_done(struct kept *k);
// Maps path for reading and locks it. STATUS_AGAIN: it is being rewritten, or was while we looked. *ret_bytes: size of the file.
enum status kept_read(struct kept *k, const char *path, struct kept_map **ret, size_t *ret_bytes,
                      struct error *err) OOZE_MUST_USE;
// For writing `bytes` bytes, all of which have pages when this returns. old: takes over this file if nobody reads it; it is gone
// from its name in any case. NULL, or no success: a fresh file. tmp: the name it has until the caller renames it; must not
// exist. Fresh files have this mode.
enum status kept_write(struct kept *k, const char *tmp, const char *old, unsigned mode, size_t bytes,
                       struct pool *pool, struct kept_map **ret, struct error *err) OOZE_MUST_USE;
void kept_release(struct kept_map *m); // the lock, not the map

#endif
