/* rotate.h: orthogonal factors of a weight (OFT, BOFT), from the skew matrices that files hold. */
#ifndef WEFT_ROTATE_H
#define WEFT_ROTATE_H

#include "delta.h"

/* w [out, in, taps] is multiplied by r's factors in place. ERR_MISMATCH when they do not fit its rows (or
 * its columns). */
int rotate(float *w, int out, int in, int taps, const struct rotation *r, const char *what,
           struct err *err);

#endif
