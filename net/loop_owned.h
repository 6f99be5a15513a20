// What a loop owns: every open handle sits in its loop's list, so that loop_close finds it. Only net/*.c
// includes this.
#ifndef NET_LOOP_OWNED_H
#define NET_LOOP_OWNED_H

#include "net/loop.h"

struct loop_owned {
    struct loop_owned *prev, *next;
    void (*close)(struct loop_owned *self); // takes itself out of the list
};
void loop_own(struct loop *l, struct loop_owned *o, void (*close)(struct loop_owned *));
void loop_disown(struct loop_owned *o);

#endif
