// Clocks: see clock.h.
#include "base/clock.h"

#include <stddef.h>
#include <time.h>

static int64_t read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t system_mono(void *ctx)
{
    (void)ctx;
    return read_clock(CLOCK_MONOTONIC);
}

static int64_t system_wall(void *ctx)
{
    (void)ctx;
    return read_clock(CLOCK_REALTIME);
}

const struct clock *clock_system(void)
{
    static const struct clock c = {system_mono, system_wall, NULL};
    return &c;
}

static int64_t fake_now(void *ctx)
{
    return ((struct clock_fake *)ctx)->now_ns;
}

void clock_fake_init(struct clock_fake *f, int64_t start_ns)
{
    f->clock = (struct clock){fake_now, fake_now, f};
    f->now_ns = start_ns;
}

void clock_fake_advance_ms(struct clock_fake *f, int64_t ms)
{
    f->now_ns += ms * 1000000;
}
