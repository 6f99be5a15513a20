// Writes the quickstart's demonstrations as JSONL chat data: prompts of the training split with answers that are often wrong in a
// systematic way, so that SFT learns the form and leaves the judgement to RL.
//   sort   35% right, 45% descending, 20% one neighbouring pair swapped
//   tool   35% right, 52% stop after the first call and answer the partial sum, 13% answer a random number without the tool
// Usage: quickstart-demos SEED ROWS_PER_TASK > demos.jsonl
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/tasks/calc.h"
#include "examples/tasks/sort.h"
#include "examples/tasks/space.h"

static void swap(char *s, int i, int j)
{
    char c = s[i];
    s[i] = s[j];
    s[j] = c;
}

static void write_sort(struct rng *rng, const struct space *space)
{
    char letters[SORT_LETTERS + 1], answer[SORT_LETTERS + 1];
    uint32_t x = space_prompt(space, false, (uint32_t)rng_below(rng, space_size(space, false)));
    double kind = rng_uniform(rng);
    sort_letters(x, letters);
    sort_answer(x, answer);
    if (kind < 0.45) {
        for (int i = 0; i < SORT_LETTERS / 2; i++)
            swap(answer, i, SORT_LETTERS - 1 - i);
    } else if (kind < 0.65) {
        int at = (int)rng_below(rng, SORT_LETTERS - 1);
        swap(answer, at, at + 1);
    }
    printf("{\"messages\":[{\"role\":\"user\",\"content\":\"S%s=\"},{\"role\":\"assistant\",\"content\":\"%"
           "s\"}]}\n",
           letters, answer);
}

static void write_call(int n, int a, char op, int b, int result)
{
    printf("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"call_%d\",\"type\":"
           "\"function\",\"function\":{\"name\":"
           "\"calc\",\"arguments\":\"{\\\"input\\\":\\\"%d%c%d\\\"}\"}}]},{\"role\":\"tool\",\"tool_call_"
           "id\":\"call_%d\",\"content\":\"%d\"},",
           n, a, op, b, n, result);
}

static void write_tool(struct rng *rng, const struct space *space)
{
    struct calc p = calc_of(space_prompt(space, false, (uint32_t)rng_below(rng, space_size(space, false))));
    double kind = rng_uniform(rng);
    int answer = (int)rng_below(rng, 300);
    printf("{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"calc\",\"parameters\":{\"type\":"
           "\"object\",\"properties\":"
           "{\"input\":{\"type\":\"string\"}},\"required\":[\"input\"]}}}],\"messages\":[{\"role\":\"user\","
           "\"content\":\"T%d%c%d%c%d=\"},",
           p.a, p.op1, p.b, p.op2, p.c);
    if (kind < 0.87) {
        write_call(1, p.a, p.op1, p.b, p.first);
        answer = p.first;
    }
    if (kind < 0.35) {
        write_call(2, p.first, p.op2, p.c, p.result);
        answer = p.result;
    }
    printf("{\"role\":\"assistant\",\"content\":\"%d\"}]}\n", answer);
}

int main(int argc, char **argv)
{
    static struct space sort, calc;
    char *end1 = "", *end2 = "";
    uint64_t seed = argc == 3 ? strtoull(argv[1], &end1, 10) : 0;
    uint64_t rows = argc == 3 ? strtoull(argv[2], &end2, 10) : 0;
    if (argc != 3 || *end1 || *end2 || rows == 0 || rows > 10000000) {
        fprintf(stderr, "usage: quickstart-demos SEED ROWS_PER_TASK > demos.jsonl\n");
        return 2;
    }
    struct rng rng;
    rng_init(&rng, seed, 2);
    space_init(&sort, SORT_SPACE, sort_is_prompt);
    space_init(&calc, CALC_SPACE, calc_is_prompt);
    for (uint64_t i = 0; i < rows; i++) {
        write_sort(&rng, &sort);
        write_tool(&rng, &calc);
    }
    return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}
