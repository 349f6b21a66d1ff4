/* bench.h: what the parts of weft bench share. */
#ifndef WEFT_BENCH_H
#define WEFT_BENCH_H

#include "unet/err.h"

#include <stdbool.h>
#include <stddef.h>

struct option;
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

/* An adapter of products on every attention layer of the UNet. Its factors lie in values [places + the largest factor],
 * one behind the other at some distance, modulo places. */
struct adapter;
struct device;
struct site;
struct sites;
bool bench_adapts(const struct site *s);
struct delta_list;
/* Its deltas, the first factor `at` values in. They are borrowed. */
int bench_list(struct delta_list *list, const struct sites *sites, int rank, const float *values,
               size_t places, size_t at, struct err *err);
int bench_bind(struct adapter **a, struct device *dev, const struct sites *sites, int rank,
               const float *values, size_t places, const char *name, struct err *err);
/* Small adapter files, no two alike, from the `from`th on, into folders of a thousand below dir. */
int bench_make_files(const char *dir, int from, int n, struct err *err);
void bench_remove_tree(const char *dir);

/* weft bench store and the like: argv[0] is that word. The exit code. */
int bench_store(int argc, char **argv);
int bench_batch(int argc, char **argv);
int bench_compose(int argc, char **argv);
int bench_retrieve(int argc, char **argv);
int bench_grad(int argc, char **argv);
/* How long the weights of an adapter take to be read, the shipped ones or one of SD 1.5's shape; one thread. */
int bench_weights(bool json, bool sd15, struct err *err);
void bench_store_help(void);
void bench_batch_help(void);
void bench_compose_help(void);
void bench_retrieve_help(void);
void bench_grad_help(void);

#endif
