// Sparklines: see table.h. Pure.
#include "cli/table.h"

#include <stdio.h>
#include <string.h>

#define WIDTH_MAX 200

void table_spark(const json_t *numbers, size_t width, char *ret, size_t n)
{
    static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    double v[WIDTH_MAX], low, high;
    size_t count = json_array_size(numbers), used = 0;
    ret[0] = 0;
    if (width > WIDTH_MAX)
        width = WIDTH_MAX;
    if (count < width)
        width = count;
    if (width == 0)
        return;
    for (size_t i = 0; i < width; i++) {
        size_t from = i * count / width, to = (i + 1) * count / width;
        double sum = 0;
        for (size_t k = from; k < to; k++)
            sum += json_number_value(json_array_get(numbers, k));
        v[i] = sum / (double)(to - from);
    }
    low = high = v[0];
    for (size_t i = 1; i < width; i++) {
        low = v[i] < low ? v[i] : low;
        high = v[i] > high ? v[i] : high;
    }
    for (size_t i = 0; i < width && used + 4 < n; i++) {
        int level = high > low ? (int)((v[i] - low) / (high - low) * 7.999) : 0;
        used += (size_t)snprintf(ret + used, n - used, "%s", blocks[level]);
    }
}
