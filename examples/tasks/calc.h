// The calculator task: a + b - c and the like with two-digit numbers, worked out left to right with a tool that takes one
// operation of two operands. T98+93-48= → [98+93]{191}[191-48]{143}@143
#ifndef EXAMPLES_TASKS_CALC_H
#define EXAMPLES_TASKS_CALC_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CALC_SPACE     (90u * 90u * 90u * 4u)
#define CALC_MAX_CALLS 3 // the fourth ends the episode

struct calc {
    int a, b, c;
    char op1, op2;
    int first, result; // after the first operation, after both
};

static inline struct calc calc_of(uint32_t x)
{
    struct calc p = {.a = 10 + (int)(x % 90), .b = 10 + (int)(x / 90 % 90), .c = 10 + (int)(x / 8100 % 90)};
    uint32_t ops = x / 729000;
    p.op1 = ops & 1 ? '-' : '+';
    p.op2 = ops & 2 ? '-' : '+';
    p.first = p.op1 == '+' ? p.a + p.b : p.a - p.b;
    p.result = p.op2 == '+' ? p.first + p.c : p.first - p.c;
    return p;
}

static inline bool calc_is_prompt(uint32_t x)
{
    struct calc p = calc_of(x);
    return p.first >= 0 && p.result >= 0;
}

// The tool: "98+93" → "191"; anything else → "E".
static inline void calc_tool(const char *input, char *ret, size_t n)
{
    char *end;
    snprintf(ret, n, "E");
    if (*input < '0' || *input > '9')
        return;
    long a = strtol(input, &end, 10);
    char op = *end;
    if (end - input > 4 || (op != '+' && op != '-') || end[1] < '0' || end[1] > '9')
        return;
    const char *second = end + 1;
    long b = strtol(second, &end, 10);
    if (end - second > 4 || *end)
        return;
    long r = op == '+' ? a + b : a - b;
    if (r >= 0)
        snprintf(ret, n, "%ld", r);
}

#endif
