/* device.h: --device, --precision, --threads and --isa, the same for all commands that compute. */
#ifndef WEFT_CLI_DEVICE_H
#define WEFT_CLI_DEVICE_H

#include "cli.h"

#include "unet/backend.h"

/* What was said; NULL and 0: nothing. */
struct device_choice {
    const char *name, *precision, *isa;
    int threads;
};

enum { DEVICE_ROWS = 4 };

/* Their DEVICE_ROWS options; returns the end of the table. */
struct option *device_options(struct option *o, struct device_choice *c);
/* Without a name the GPU where this build and machine have one, else the CPU. */
int device_choose(struct device **out, const struct device_choice *c, struct err *err);

#endif
