// Small drawings for terminals.
#ifndef CLI_TABLE_H
#define CLI_TABLE_H

#include <stddef.h>

#include "base/json.h"

// The last numbers of an array as `width` block characters, scaled to their own minimum and maximum; longer arrays are averaged into
// `width` buckets. "" for an empty array.
void table_spark(const json_t *numbers, size_t width, char *ret, size_t n);

#endif
