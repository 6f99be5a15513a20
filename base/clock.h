// Time, injectable: whoever needs time takes a struct clock, so that tests turn the hands themselves.
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

struct clock {
    int64_t (*mono_ns)(void *ctx); // monotonic: deadlines, durations
    int64_t (*wall_ns)(void *ctx); // since 1970: only for records that people read
    void *ctx;
};

// The machine's clocks; immutable, any thread.
const struct clock *clock_system(void);

static inline int64_t clock_mono_ms(const struct clock *c)
{
    return c->mono_ns(c->ctx) / 1000000;
}
static inline int64_t clock_mono_ns(const struct clock *c)
{
    return c->mono_ns(c->ctx);
}
static inline int64_t clock_wall_ms(const struct clock *c)
{
    return c->wall_ns(c->ctx) / 1000000;
}

// A clock that stands still until told.
struct clock_fake {
    struct clock clock;
    int64_t now_ns;
};
void clock_fake_init(struct clock_fake *f, int64_t start_ns);
void clock_fake_advance_ms(struct clock_fake *f, int64_t ms);

#endif
