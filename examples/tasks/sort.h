// The sort task: six letters of a–j, the answer is the letters in order. Sfjecii= → cefiij
#ifndef EXAMPLES_TASKS_SORT_H
#define EXAMPLES_TASKS_SORT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define SORT_LETTERS 6
#define SORT_SPACE   1000000u // 10^6 prompts

static inline bool sort_is_prompt(uint32_t x)
{
    return x < SORT_SPACE;
}

static inline void sort_letters(uint32_t x, char ret[SORT_LETTERS + 1])
{
    for (int i = 0; i < SORT_LETTERS; i++, x /= 10)
        ret[i] = (char)('a' + x % 10);
    ret[SORT_LETTERS] = 0;
}

static inline void sort_answer(uint32_t x, char ret[SORT_LETTERS + 1])
{
    sort_letters(x, ret);
    for (int i = 1; i < SORT_LETTERS; i++)
        for (int j = i; j > 0 && ret[j - 1] > ret[j]; j--) {
            char c = ret[j];
            ret[j] = ret[j - 1];
            ret[j - 1] = c;
        }
}

#endif
