/* request.h: everything a picture is made from, as the command line says it and as a PNG remembers it.
 *
 * The same settings go three ways: from options, into the picture's text chunks, and back from them
 * (`render --like`). This is the one place that knows all of them.
 */
#ifndef WEFT_REQUEST_H
#define WEFT_REQUEST_H

#include "store/repo.h"
#include "unet/lbw.h"
#include "unet/prompt.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* -a REF[:STRENGTH][,key=value...] or <lora:NAME:te:unet> */
struct request_adapter {
    char *ref;             /* as it was given */
    char *path;            /* the file it means */
    char sha256[HASH_HEX]; /* of its tensor data; "" until known */
    double unet, te;
    int from, to;
    struct lbw blocks; /* n 0: none */
    char *
        prompt; /* what its region is of, for strategies that have regions; NULL: what the prompt says */
    char *word; /* its words in the prompt; "": none; NULL: as the repository has them */
    /* Where it acts: left, top, right, bottom in shares of the picture (all 0: everywhere), or a picture that is white
     * there, with the hash of its file. */
    double box[4];
    char *mask, mask_sha256[HASH_HEX];
    bool in_prompt; /* the prompt itself names it */
    /* Of one in the repository, else NULL and "": how it is called there. */
    char *name, *id;
    char file_sha256[HASH_HEX];
    struct repo_adapter *row; /* owned; NULL also for one that a picture brought along */
};

/* --embedding FILE[=NAME], or a word of the prompts that names one of the repository */
struct request_embedding {
    char *path;
    char *name;            /* what the prompt calls it; NULL: as its file says */
    char sha256[HASH_HEX]; /* of its tensor data; "" until known */
    int first, n_word;     /* its words, once they are read (cli/embeddings.h); not remembered */
    bool given;            /* on this command line */
    bool found;            /* in the repository, by a word of the prompts */
};

struct request {
    struct repo
        *repo;   /* where names of adapters and models are looked up; borrowed, NULL: files only */
    char *model; /* folder; NULL: the default */
    char *prompt, *negative;
    struct request_adapter *adapter;
    int n_adapter;
    struct request_embedding *embedding;
    int n_embedding;
    uint64_t seed;
    int size[2]; /* 0: the model's own */
    int steps, clip_skip, tile;
    double cfg, eta, denoise;
    char *sampler;  /* NULL: the model's own */
    char *schedule; /* "default", "karras", "trained" */
    char *rng;      /* "torch", "philox" */
    char *init;     /* picture to start from, or NULL */
    char *compose;  /* how adapters share the picture (compose.h); NULL: "merge" */
    bool fold;
    /* What they were when the picture was made, which a picture made after it must find again: the
     * model's fingerprint and the SHA-256 of the file of init; "" where nothing is known. */
    char model_sha256[HASH_HEX], init_sha256[HASH_HEX];
};

void request_init(struct request *r);
void request_release(struct request *r);
/* *to = a copy of text, freeing what was there. */
int request_set(char **to, const char *text, struct err *err);

/* Whether every number is one that can be used; the message names the option. */
int request_check(const struct request *r, struct err *err);

/* Adds an adapter from the text of -a. The longest beginning that names one in the repository or a file
 * is the reference; where no strength follows, the preferred one is taken, or 1. One of the same file that a picture brought along (r read by request_from_json) makes room for it. */
int request_add_adapter(struct request *r, const char *text, struct err *err);
/* The same from a <lora:…> in the prompt. */
int request_add_named(struct request *r, const char *name, double te, double unet, struct err *err);

/* Adds a textual inversion from the text of --embedding. One of the same file that a picture brought along
 * makes room for it. */
int request_add_embedding(struct request *r, const char *text, struct err *err);

/* request_repo.c: adds the textual inversions of the repository whose name, alias or own word is somewhere in the
 * prompts; whether it stands there as a word is known once the texts are cut into tokens. */
int request_find_embeddings(struct request *r, struct err *err);
/* A new one at the end, or NULL; and removes the i-th. */
struct request_embedding *request_new_embedding(struct request *r, struct err *err);
void request_drop_embedding(struct request *r, int i);

/* Removes the i-th adapter. */
void request_drop_adapter(struct request *r, int i);
/* Forgets the adapters that the prompt named. */
void request_drop_named(struct request *r);

/* Fills in what the repository knows of an adapter. Takes row's strings. */
int request_take_row(struct request_adapter *a, const struct repo_adapter *row, struct err *err);

/* request_repo.c: a registered model's name becomes its folder; without a name the only registered model
 * is taken. */
int request_model(struct request *r, struct err *err);
/* Before a file is opened: where the one that a picture was made with is gone, takes one of the
 * repository with the same tensors; one of the repository must still be what was added. */
int request_relocate(struct request *r, struct request_adapter *a, struct err *err);
int request_check_adapter(struct request *r, struct request_adapter *a, struct err *err);
/* Adapters of which no group of triggers is in the prompt (read as p): a hint on stderr, or with add the
 * first group in front of the prompt, which must be read anew when it changed. */
int request_triggers(struct request *r, const struct prompt *p, bool add, bool *changed,
                     struct err *err);

/* The `weft` chunk: all of the above as JSON, and back. Only a chunk of this form is read: each key must be
 * there and in range, and none besides. */
char *request_to_json(const struct request *r, struct err *err);
int request_from_json(struct request *r, const char *text, struct err *err);
/* request_a1111.c: from the `parameters` text of another program's picture. The prompt's <lora:…> names become
 * those of the repository, found by hash; what is not there is ERR_MISMATCH, naming all. *note: settings
 * that weft does not follow, or NULL; the caller frees it. */
int request_from_parameters(struct request *r, const char *text, char **note, struct err *err);
/* Our name of A1111's sampler, or NULL. */
const char *request_sampler_of(const char *a1111, size_t len);
/* A1111's `parameters` text. */
char *request_to_parameters(const struct request *r, const char *model_name,
                            const char *sampler_name, struct err *err);

#endif
