// How many decimal digits a real needs. Pure functions; any thread.
#ifndef BASE_REAL_H
#define BASE_REAL_H

// The fewest significant digits, 1 to 17, that read back as exactly v (finite): the d of "%.*g", one less for "%.*e".
int real_digits(double v);

#endif
