/* making.h: pictures in the making: from a command line to a model, its adapters and a plan in memory.
 *
 *     struct making m = {0};
 *     making_options(o, &m);                       // and the command's own behind them
 *     rc = making_parse(&m, o, argc, argv, &err);  // all of m.r
 *     rc = rc < 0 ? rc : making_load(&m, &err);
 *     rc = rc < 0 ? rc : making_picture(&m, &p, &err);
 *     rc = rc < 0 ? rc : making_plan(&m, &p, 1, &err);
 *     rc = rc < 0 ? rc : making_run(&m, &p, 1, &image, &err);
 *     making_release(&m);
 *
 * Fill with zero before making_options.
 */
#ifndef WEFT_MAKING_H
#define WEFT_MAKING_H

#include "cli.h"
#include "device.h"
#include "pool.h"
#include "request.h"

#include "compose/generate.h"
#include "store/adapter.h"

/* Options as given, before they are laid over the settings of --like. */
struct given {
    const char *prompt, *negative, *model, *sampler, *schedule, *rng, *init;
    struct option_list adapter, embedding, compose;
    uint64_t seed;
    int size[2], steps, clip_skip, tile;
    double cfg, eta, denoise;
    bool fold, has_seed, has_steps, has_clip_skip, has_tile, has_cfg, has_eta, has_denoise;
};

/* Everything one call of a command holds; released whole at the end. */
struct making {
    struct given given;
    struct request r;
    struct repo *repo; /* NULL: there is none */
    struct device *dev;
    struct model *model;
    struct adapter_file **file; /* [r.n_adapter] */
    struct adapter **adapter;
    struct use *use;
    char **word;   /* [r.n_adapter], what use.words point to; NULL: no strategy wants them */
    float **where; /* [r.n_adapter], what use.where point to; NULL: none was asked for */
    struct generator *g;
    struct gates *gates; /* opened where a strategy needs them; NULL: the model has none */
    struct prompt prompt, negative;
    struct words *words;
    struct image init;
    struct cost cost;

    /* of this call, not of the picture */
    const char *like, *home, *gates_file;
    struct device_choice on;
    bool verbose, allow_partial, triggers;
    bool hush;              /* says nothing of triggers that the prompt lacks */
    bool lent;              /* repo, device, model, generator and gates are another's */
    struct pool *pool;      /* where adapters are kept (pool.h); NULL: each picture has its own */
    bool later;             /* prompts come later, by making_request */
    bool named;             /* r has the adapters that the prompt names */
    int choose;             /* --auto: at most so many adapters; -1: not said; 0: none */
    bool yes;               /* what it proposes is taken */
    struct auto_pick *pick; /* what it chose (auto.h); owned */
    int n_pick;
};

/* The options of every command that makes pictures; returns the end of the table, where the command puts
 * its own and a last one without a name. */
struct option *making_options(struct option *o, struct making *m);
/* Samplers and what a prompt may hold, for `weft help`. */
void making_help(void);

/* Reads one prompt and the options, opens the repository where there is one, and lays all over the settings of --like. What --compose
 * names is left to the command (m->given.compose). */
int making_parse(struct making *m, const struct option *o, int argc, char **argv, struct err *err);
/* What an options table of the command's own laid into m->given becomes the request, with this prompt; what was
 * loaded for another one is released, but for device and model. */
int making_request(struct making *m, const char *prompt, struct err *err);
/* m->repo, if there is one. */
int making_open_repo(struct making *m, struct err *err);
/* Device and model, unless they are there. */
int making_model(struct making *m, struct err *err);
/* What is loaded of it must be forgotten before. */
void making_close_model(struct making *m);
/* Whether there are gates for the model, those of --gates or its own: then they are open. */
bool making_gates(struct making *m);
/* The strategy that shows most of two adapters on the model. */
const char *making_best(struct making *m);
/* Prompts, device, model and the picture to start from: what the request says, without its adapters' files. */
int making_settle(struct making *m, struct err *err);
/* And adapters, their words and places. */
int making_load(struct making *m, struct err *err);
/* The request as the generator takes it; its size becomes known. p->use is m->use. */
int making_picture(struct making *m, struct picture *p, struct err *err);
/* Plans p (m->cost), says on stderr what it will take, and refuses what has no room. n_picture: how many such
 * pictures there will be; 0: says nothing. */
int making_plan(struct making *m, const struct picture *p, int n_picture, struct err *err);
/* Refuses what has no room. */
int making_room(struct making *m, const struct cost *cost, struct err *err);
enum { MAKING_HAND = 8, HAND_ROWS = 8 };
/* How many of the HAND_ROWS rows of a hand a picture takes, whose cost m->cost is: all, where more would gain nothing. */
int making_rows(const struct making *m, const struct picture *p);
/* How many pictures like p, which was planned, are best made at once: 1 to MAKING_HAND. */
int making_hand(const struct making *m, const struct picture *p);
/* n pictures at once, with a progress bar. ERR_STOPPED after Ctrl-C. Release im[n]. */
int making_run(struct making *m, const struct picture *p, int n, struct image *im, struct err *err);
/* Whether a picture could be written there at the end. */
int making_can_write(const struct making *m, const char *path, struct err *err);
/* A PNG that remembers m->r. */
int making_write(const struct making *m, const char *path, const struct image *im, struct err *err);

/* Releases the request and what was loaded for it; device, model and repository stay. */
void making_forget(struct making *m);
void making_release(struct making *m);

/* What finds adapters of m->repo by their weights (retrieve/find.h), for m->model; both are there, and stay until
 * finder_close. */
struct finder;
int making_finder(const struct making *m, struct finder **f, struct err *err);

#endif
