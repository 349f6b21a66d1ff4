/* request.h: everything a picture is made from, as the command line says it and as a PNG remembers it.
 *
 * The same settings go three ways: from options, into the picture's text chunks, and back from them
 * (`render --like`). This is the one place that knows all of them.
 */
#ifndef WEFT_REQUEST_H
#define WEFT_REQUEST_H

#include "unet/err.h"
#include "unet/image.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* -a REF[:STRENGTH][,key=value...] or <lora:NAME:te:unet> */
struct request_adapter {
    char *ref;       /* as it was given */
    char *path;      /* the file it means */
    char sha256[65]; /* of its tensor data; "" until known */
    double unet, te;
    int from, to;
    bool in_prompt; /* the prompt itself names it */
};

struct request {
    char *model; /* folder; NULL: the default */
    char *prompt, *negative;
    struct request_adapter *adapter;
    int n_adapter;
    uint64_t seed;
    int size[2]; /* 0: the model's own */
    int steps, clip_skip, tile;
    double cfg, eta, denoise;
    char *sampler;  /* NULL: the model's own */
    char *schedule; /* "default", "karras", "trained" */
    char *rng;      /* "torch", "philox" */
    char *init;     /* picture to start from, or NULL */
    bool fold;
};

void request_init(struct request *r);
void request_release(struct request *r);
/* *to = a copy of text, freeing what was there. */
int request_set(char **to, const char *text, struct err *err);

/* Adds an adapter from the text of -a. The longest beginning that names a file is the file. */
int request_add_adapter(struct request *r, const char *text, struct err *err);
/* The same from a <lora:…> in the prompt. */
int request_add_named(struct request *r, const char *name, double te, double unet, struct err *err);

/* The `weft` chunk: all of the above as JSON, and back. */
char *request_to_json(const struct request *r, struct err *err);
int request_from_json(struct request *r, const char *text, struct err *err);
/* A1111's `parameters` text. */
char *request_to_parameters(const struct request *r, const char *model_name,
                            const char *sampler_name, struct err *err);

#endif
