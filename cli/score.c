/* weft score: how well pictures show a text, or look like another picture. */
#include "cli.h"
#include "device.h"

#include "unet/file.h"
#include "unet/scorer.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct score {
    const char *scorer;
    struct device_choice on;
    struct option_list text, like;
    const char **image; /* [n_image] */
    int n_image;
    bool json;
    struct device *dev;
    struct scorer *s;
    float *texts, *likes; /* [n, dim] */
};

#define MAX_OPTIONS 10

static void make_options(struct option *o, void *target)
{
    struct score *c = target;
    const struct option table[] = {
        {"text", 0, OPTION_LIST, &c->text, "TEXT",
         "how well each picture shows it; may be repeated", 0, 0, NULL},
        {"like", 0, OPTION_LIST, &c->like, "IMAGE",
         "how alike each picture is to it; may be repeated", 0, 0, NULL},
        {"scorer", 0, OPTION_TEXT, &c->scorer, "DIR",
         "a CLIP model in transformers' layout; default: the demo world's", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &c->json, NULL, "one JSON object a picture", 0, 0, NULL},
    };
    memcpy(o, table, sizeof table);
    *device_options(o + sizeof table / sizeof *table, &c->on) = (struct option){.name = NULL};
}

static int parse(struct score *c, int argc, char **argv, struct err *err)
{
    struct option o[MAX_OPTIONS];
    make_options(o, c);
    c->image = calloc((size_t)argc + 1, sizeof *c->image);
    if (!c->image)
        return err_nomem(err, (size_t)argc * sizeof *c->image);
    int rc = options_parse(o, argc, argv, c->image, &c->n_image, err);
    if (rc == 0 && !c->n_image)
        rc = err_set(err, ERR_ARG, "no picture to score");
    if (rc == 0 && !c->text.n && !c->like.n)
        rc = err_set(err, ERR_ARG, "score against what? --text TEXT or --like IMAGE");
    return rc;
}

static int open_scorer(struct score *c, struct err *err)
{
    char *demo = c->scorer ? NULL : cli_asset("scorer");
    int rc = device_choose(&c->dev, &c->on, err);
    if (rc == 0 && !c->scorer && !demo)
        rc = err_set(err, ERR_IO,
                     "the demo world's scorer is not installed; name one: --scorer DIR");
    rc = rc < 0 ? rc : scorer_open(&c->s, c->dev, c->scorer ? c->scorer : demo, err);
    free(demo);
    return rc;
}

static int embed_picture(struct score *c, const char *path, float *out, struct err *err)
{
    struct image im = {0};
    int rc = image_read_png(path, &im, NULL, err);
    if (rc == 0) {
        rc = scorer_image(c->s, &im, out, err);
        if (rc < 0)
            err_prefix(err, "%s", path);
    }
    image_release(&im);
    return rc;
}

/* The texts and pictures that all are held against. */
static int embed_targets(struct score *c, struct err *err)
{
    size_t dim = (size_t)c->s->clip->dim;
    int rc = 0;
    c->texts = malloc((size_t)(c->text.n + 1) * dim * sizeof *c->texts);
    c->likes = malloc((size_t)(c->like.n + 1) * dim * sizeof *c->likes);
    if (!c->texts || !c->likes)
        return err_nomem(err, dim * sizeof *c->texts);
    for (int i = 0; i < c->text.n && rc == 0; i++)
        rc = scorer_text(c->s, c->text.item[i], c->texts + (size_t)i * dim, err);
    for (int i = 0; i < c->like.n && rc == 0; i++)
        rc = embed_picture(c, c->like.item[i], c->likes + (size_t)i * dim, err);
    return rc;
}

/* What share of its belief the scorer gives each text: softmax of scaled cosines. */
static void shares(const struct score *c, const double *cosine, double *share)
{
    double most = -2, sum = 0;
    for (int i = 0; i < c->text.n; i++)
        most = cosine[i] > most ? cosine[i] : most;
    for (int i = 0; i < c->text.n; i++)
        sum += share[i] = exp(c->s->clip->scale * (cosine[i] - most));
    for (int i = 0; i < c->text.n; i++)
        share[i] /= sum;
}

static void print_json(const struct score *c, const char *path, const double *text,
                       const double *share, const double *like)
{
    json_t *root = json_object(), *texts = json_array(), *likes = json_array();
    json_object_set_new(root, "file", json_string(path));
    for (int i = 0; i < c->text.n; i++)
        json_array_append_new(texts, json_pack("{s:s, s:f, s:f}", "text", c->text.item[i], "cosine",
                                               text[i], "share", share[i]));
    for (int i = 0; i < c->like.n; i++)
        json_array_append_new(likes,
                              json_pack("{s:s, s:f}", "like", c->like.item[i], "cosine", like[i]));
    json_object_set_new(root, "texts", texts);
    json_object_set_new(root, "likes", likes);
    char *line = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(8));
    puts(line ? line : "{}");
    free(line);
    json_decref(root);
}

static void print_text(const struct score *c, const char *path, const double *text,
                       const double *share, const double *like)
{
    for (int i = 0; i < c->text.n; i++) {
        printf("%-30s %6.3f ", path, text[i]);
        if (c->text.n > 1)
            printf("%5.1f %% ", 100 * share[i]);
        printf(" %s\n", c->text.item[i]);
    }
    for (int i = 0; i < c->like.n; i++)
        printf("%-30s %6.3f  like %s\n", path, like[i], c->like.item[i]);
}

static int score_picture(struct score *c, const char *path, struct err *err)
{
    size_t dim = (size_t)c->s->clip->dim, n = (size_t)(c->text.n + c->like.n);
    float *e = malloc(dim * sizeof *e);
    double *text = malloc((n + (size_t)c->text.n + 1) * sizeof *text);
    double *like = text ? text + c->text.n : NULL, *share = text ? text + n : NULL;
    int rc = e && text ? embed_picture(c, path, e, err) : err_nomem(err, dim * sizeof *e);

    if (rc == 0) {
        for (int i = 0; i < c->text.n; i++)
            text[i] = scorer_cosine(c->s, e, c->texts + (size_t)i * dim);
        for (int i = 0; i < c->like.n; i++)
            like[i] = scorer_cosine(c->s, e, c->likes + (size_t)i * dim);
        shares(c, text, share);
        if (c->json)
            print_json(c, path, text, share, like);
        else
            print_text(c, path, text, share, like);
    }
    free(e);
    free(text);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct score c;
    struct err err;

    (void)self;
    memset(&c, 0, sizeof c);
    int rc = parse(&c, argc, argv, &err);
    rc = rc < 0 ? rc : open_scorer(&c, &err);
    rc = rc < 0 ? rc : embed_targets(&c, &err);
    for (int i = 0; i < c.n_image && rc == 0; i++)
        rc = score_picture(&c, c.image[i], &err);
    free(c.texts);
    free(c.likes);
    free(c.image);
    free(c.text.item);
    free(c.like.item);
    scorer_close(c.s);
    device_close(c.dev);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_score = {
    .name = "score",
    .usage = "weft score IMAGE... --text TEXT",
    .about = "how well pictures show a text or look like another picture",
    .run = run,
    .options = make_options,
    .size = sizeof(struct score),
    .more = "Figures are cosines, -1 to 1: compare those of one scorer only. With several texts, "
            "`share`\n"
            "says how the scorer would divide 100 % among them.",
};
