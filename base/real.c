// Shortest decimals, by trial: see real.h. Printing and reading back share whatever decimal point the locale has.
#include "base/real.h"

#include <stdio.h>
#include <stdlib.h>

int real_digits(double v)
{
    char text[40];
    for (int digits = 1; digits < 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            return digits;
    }
    return 17;
}
