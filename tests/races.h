// Under the thread sanitizer a test is thirty times slower and is there to show races: with RACES_ONLY it does less of what it does, nothing
// on one thread, and does not ask whether values are right.
#ifndef TESTS_RACES_H
#define TESTS_RACES_H

#ifdef __SANITIZE_THREAD__
#define RACES_ONLY 1
#else
#define RACES_ONLY 0
#endif

#endif
