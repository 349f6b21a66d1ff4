/* axis.h: a setting and the values it takes in turn: --x cfg=3,5,7. */
#ifndef WEFT_AXIS_H
#define WEFT_AXIS_H

#include "request.h"

enum { AXIS_MOST = 64 };

struct axis {
    const char *option; /* "--x", for messages; borrowed */
    char *key;          /* "cfg" */
    char *value[AXIS_MOST];
    int n;
};
/* What weft help says of KEY. */
extern const char axis_help[];

/* KEY=A,B,… into a, which is empty but for option. Release after any result. */
int axis_read(struct axis *a, const char *text, struct err *err);
/* The values A,B,… alone, of this key. */
int axis_read_values(struct axis *a, const char *key, const char *text, struct err *err);
int axis_read_list(struct axis *a, const char *key, const char *const *item, int n,
                   struct err *err);
void axis_release(struct axis *a);

/* Lays the i-th value over the request, and refuses what no request can have. */
int axis_set(struct request *r, const struct axis *a, int i, struct err *err);
/* "cfg 5"; strategies and replaced words speak for themselves. A new string. */
char *axis_label(const struct axis *a, int i);

#endif
