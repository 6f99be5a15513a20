// export: see export.h. Any thread; no device is needed.
#include "trainer/export.h"

#include <stdio.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/runconfig.h"
#include "model/folder.h"
#include "trainer/checkpoint.h"

enum status export_folder(const char *checkpoint_dir, const char *out_dir, enum dtype dtype,
                          struct error *err)
{
    struct model_config c;
    struct layout l = {0};
    float *master = NULL;
    char hash[HASH_HEX];
    enum status rc = STATUS_OK;
    if (file_exists(out_dir))
        return error_set(err, STATUS_EXISTS, "%s exists; name a folder that does not", out_dir);
    rc = checkpoint_verify_model(checkpoint_dir, err);
    if (!rc)
        rc = model_config_read(checkpoint_dir, &c, err);
    if (!rc)
        rc = layout_open(&c, &l, err);
    if (!rc)
        rc = model_folder_read(checkpoint_dir, &c, &l, &master, err);
    if (!rc)
        rc = model_folder_write(out_dir, &c, &l, master, dtype, checkpoint_dir, hash, err);
    mem_free(master);
    layout_done(&l);
    return rc;
}
