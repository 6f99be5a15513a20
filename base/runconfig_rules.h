// Between the files of runconfig: what concerns several keys at once. Not for other rooms.
#ifndef BASE_RUNCONFIG_RULES_H
#define BASE_RUNCONFIG_RULES_H

#include "base/config.h"
#include "base/runconfig.h"

// Fills the defaults that depend on other keys, then checks the rules between keys; an error names the place
// of the key at fault when the user gave it.
enum status runconfig_resolve(struct run_config *c, const struct config_origins *origins,
                              struct error *err) OOZE_MUST_USE;

// The stage's name, or its kind as long as it has none.
const char *runconfig_stage_name(const void *item);
const char *runconfig_loss_name(int64_t loss);

#endif
