/* loader.h: from the files of a diffusers folder to layers: weights by name, and the model's sites.
 *
 * `struct weights` finds arrays by name in one component's files (one file, an .fp16 variant, or
 * shards with an index), or makes random ones for benchmarks. `struct sites` lists every layer, by
 * its full name, which is where adapters find it. `struct loader` joins the two while a network fills in its layers; its error
 * is sticky, so a constructor reads straight down and asks loader_done() once.
 *
 *     source_open(&src, "model/unet", "diffusion_pytorch_model", &err);
 *     struct loader ld = {.dev = dev, .weights = src.weights, .sites = sites, .part = COMPONENT_UNET};
 *     loader_conv(&ld, &u->conv_in, "conv_in", 4, 320, 3, 1);
 *     rc = loader_done(&ld, NULL, &err);
 */
#ifndef WEFT_LOADER_H
#define WEFT_LOADER_H

#include "backend.h"

#include <stdbool.h>

struct config;
struct hash;
struct weights;

void weights_close(struct weights *w);
/* Adds to h what tells these weights from others: every array's name, dtype and shape, and of the values
 * 256 blocks of 4 KiB, evenly spread over each file (all of them where the file is that small). */
void weights_hash(const struct weights *w, struct hash *h);

/* One component's config and weights, from which a network is built. */
struct source {
    struct config *config;
    struct weights *weights;
};
/* dir/config.json and its weights: STEM.safetensors, STEM.safetensors.index.json, STEM.fp16.safetensors
 * or its index, in this order ("diffusion_pytorch_model", "model"). A folder with only .bin files is
 * refused with what to do. Close with source_close, or give it to a network. */
int source_open(struct source *s, const char *dir, const char *stem, struct err *err);
/* A config by hand (`what` names it in messages) and weights that were never trained, the same for the
 * same seed, for benchmarks. */
int source_random(struct source *s, const char *config_json, const char *what, uint64_t seed,
                  struct err *err);
void source_close(struct source *s);

enum component { COMPONENT_UNET, COMPONENT_TEXT, COMPONENT_VAE, COMPONENT_COUNT };
/* "unet", "text_encoder", "vae": the first word of a site's name. */
extern const char *const component_names[COMPONENT_COUNT];

struct site {
    char *name; /* "unet.mid_block.attentions.0.proj_in"; owned */
    enum component part;
    struct layer *layer; /* the model's; or NULL, and */
    struct norm *norm;   /* a norm */
};
struct sites {
    struct site *at;
    int n, cap;
    int *order; /* indices by name, for sites_find */
};
/* After the last site was added. */
int sites_finish(struct sites *s, struct err *err);
/* Index of that name, or -1. */
int sites_find(const struct sites *s, const char *name);
/* The block of a site's name: "unet.down_blocks.1", "unet.mid_block", "text_encoder", "unet". */
void site_block(char *out, size_t size, const char *site);
void sites_release(struct sites *s);

struct loader {
    struct device *dev;
    struct weights *weights;
    struct sites *sites; /* every layer and norm becomes one */
    enum component part;
    struct err err;
    char path[256]; /* where names are looked up, "mid_block.resnets.0." */
    int depth;
    size_t mark[16];    /* path's length before each loader_enter */
    const char *hidden; /* a beginning of names that the file leaves out, or NULL */
};

/* Names from here on are below this one, until loader_leave. */
void loader_enter(struct loader *ld, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void loader_leave(struct loader *ld);

/* Each fills in its struct from NAME.weight and, where it must exist, NAME.bias. */
void loader_linear(struct loader *ld, struct layer *l, const char *name, int in, int out,
                   bool bias);
/* A k x k convolution, padded k / 2 all round. */
void loader_conv(struct loader *ld, struct layer *l, const char *name, int in, int out, int k,
                 int stride);
/* A k x k convolution over squares that do not overlap, without bias (a vision tower's patches). */
void loader_patches(struct loader *ld, struct layer *l, const char *name, int in, int out, int k);
/* groups 0: a layer norm. */
void loader_norm(struct loader *ld, struct norm *g, const char *name, int c, int groups, float eps);
/* An array of exactly these dims, borrowed from the file. */
void loader_array(struct loader *ld, struct array *a, const char *name, int ndim,
                  const uint64_t *dim);
bool loader_has(const struct loader *ld, const char *name);
void loader_fail(struct loader *ld, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The first error; or, when arrays remain that nothing used, an error naming them: the file holds a
 * network that weft does not know. ignore: NULL-terminated endings that do not matter. */
int loader_done(struct loader *ld, const char *const *ignore, struct err *err);

#endif
