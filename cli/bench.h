/* bench.h: what the parts of weft bench share. */
#ifndef WEFT_BENCH_H
#define WEFT_BENCH_H

#include "unet/err.h"

#include <stdbool.h>
#include <stddef.h>

struct adapter;
struct delta_list;
struct device;
struct device_choice;
struct gates;
struct option;
struct site;
struct sites;
struct tensor;
struct unet;
/* A part's own options; argv[0] is its name. */
int bench_parse(const struct option *o, int argc, char **argv, struct err *err);
/* Its paragraph of the help. */
void bench_help(const char *about, const struct option *o);

/* A folder of its own below dir, with places for a repository and for files. */
struct bench_folder {
    char root[300], home[400], files[400];
};
int bench_folder_make(struct bench_folder *f, const char *dir, struct err *err);

/* What a run of the whole program took. */
struct bench_run {
    double all,
        first; /* seconds from its start to its end, to its first line that began so; NAN: there was none */
    double bytes; /* of memory, at most */
};
/* Runs this program with these arguments, at most 20 with NULL behind; what it prints is read and thrown away. first: how
 * the line begins that is waited for, or NULL. */
int bench_run(const char *const *arg, const char *first, struct bench_run *r, struct err *err);

/* One line: a table's, or with json an object of name, value, unit. */
void bench_figure(bool json, const char *name, double value, const char *unit);
/* p50 and p99 of n times in seconds, which are sorted. */
void bench_percentiles(bool json, const char *what, double *t, int n);
/* The config of SD 1.5's UNet, with a %d for the width of its texts. */
extern const char bench_sd15_unet[];
/* Such a UNet, never trained; release both also after an error. */
int bench_open_sd15(struct unet **u, struct sites *sites, struct device *dev, int width,
                    struct err *err);

/* Until all that was asked of t's device is done, where that may be later (flush in unet/backend.h); t is any tensor there. */
int bench_wait(const struct tensor *t, struct err *err);
/* What is timed: go asks for it once. */
struct bench_job {
    int (*go)(void *user, struct err *err);
    void *user;
    const struct tensor *t; /* any of the device's */
};
/* The best seconds of one, as a mean over many in a row where they are done later. */
int bench_best(const struct bench_job *j, double *seconds, struct err *err);
/* Numbers in [-1/2, 1/2), always the same. */
void bench_fill(float *v, size_t n);

/* What a device does in a second at most, as measured, and how speeds are said. */
struct bench_limits {
    double flops, bytes, scale;
    const char *unit;
};
int bench_limits(struct bench_limits *l, struct device *dev, const struct device_choice *on,
                 bool json, struct err *err);
int bench_layers(struct device *dev, const struct bench_limits *of, bool json, struct err *err);
/* What only moves numbers, for so many guided pictures. */
int bench_ops(struct device *dev, int batch, const struct bench_limits *of, bool json,
              struct err *err);

/* An adapter of products on every attention layer of the UNet. Its factors lie in values [places + the largest factor],
 * one behind the other at some distance, modulo places. */
bool bench_adapts(const struct site *s);
/* Values of factors that all begin at the first, places 1; new. NULL: no memory. */
float *bench_factors(const struct sites *sites, int rank);
/* Its deltas, the first factor `at` values in. They are borrowed. */
int bench_list(struct delta_list *list, const struct sites *sites, int rank, const float *values,
               size_t places, size_t at, struct err *err);
int bench_bind(struct adapter **a, struct device *dev, const struct sites *sites, int rank,
               const float *values, size_t places, const char *name, struct err *err);
/* Gates where they act, all open, a number a place; closed by gates_close. */
int bench_gates(struct gates **out, struct device *dev, const struct sites *sites, struct err *err);
/* Small adapter files, no two alike, from the `from`th on, into folders of a thousand below dir. */
int bench_make_files(const char *dir, int from, int n, struct err *err);
void bench_remove_tree(const char *dir);

/* weft bench store and the like: argv[0] is that word. The exit code. */
int bench_store(int argc, char **argv);
int bench_batch(int argc, char **argv);
int bench_compose(int argc, char **argv);
int bench_retrieve(int argc, char **argv);
int bench_grad(int argc, char **argv);
int bench_unet(int argc, char **argv);
/* The same for the device in hand. */
struct bench_unets {
    struct device *dev;
    const struct bench_limits *limits;
    const char *model;
    const int *batch; /* pictures at once; ends with 0 */
    bool small, json;
    bool qkv; /* adapters on q, k, v and out alone */
};
int bench_unets(const struct bench_unets *u, struct err *err);
extern const int bench_batches[]; /* those of a GPU */
/* How long the weights of an adapter take to be read, the shipped ones or one of SD 1.5's shape; one thread. */
int bench_weights(bool json, bool sd15, struct err *err);
void bench_store_help(void);
void bench_batch_help(void);
void bench_compose_help(void);
void bench_retrieve_help(void);
void bench_grad_help(void);
void bench_unet_help(void);

#endif
