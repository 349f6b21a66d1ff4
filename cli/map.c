/* weft map: all adapters in one picture, those near each other whose weights do alike. */
#include "shelf.h"
#include "where.h"

#include "retrieve/layout.h"
#include "store/geometry.h"
#include "unet/matrices.h"
#include "unet/scatter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMED = SCATTER_COLOURS + 1 }; /* rows of the legend, with that of the rest */

/* One adapter. Strings are owned. */
struct spot {
    int64_t key;
    char *name, *id, *category, *base;
    int island, cluster, kind;
};

struct map {
    struct shelf s;
    const char *out, *where, *by;
    int size[2];
    struct spot *spot; /* [n + skipped] behind the first n those that cannot be placed */
    int n, skipped, islands;
    float *place; /* [n, 2] */
    float *density;
    struct err *err;
};

/* What says who is near whom: unit vectors of all adapters, *x [n, *dim], a new array; zeros for one that
 * has none. */
typedef int vectors_of(struct map *c, float **x, int *dim, struct err *err);

#define MAX_OPTIONS 8

static void make_options(struct option *o, void *target)
{
    struct map *c = target;
    const struct option table[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "the picture, a PNG; default map.png", 0, 0,
         NULL},
        {"size", 's', OPTION_SIZE, c->size, "WxH",
         "of the picture; default: as large as all names need,\nat most about 3600x2700", 0, 0,
         NULL},
        {"colour", 0, OPTION_TEXT, &c->by, "BY",
         "category, base or cluster; default: the first of these that\nsays anything here", 0, 0,
         NULL},
        WHERE_OPTION(&c->where),
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static void release(struct map *c)
{
    for (int i = 0; i < c->n + c->skipped; i++) {
        struct spot *p = &c->spot[i];
        free(p->name);
        free(p->id);
        free(p->category);
        free(p->base);
    }
    free(c->spot);
    free(c->place);
    free(c->density);
}

/* ---- which ----------------------------------------------------------------------------------- */

static int add_spot(struct map *c, const struct repo_adapter *a, const char *base)
{
    if (!(c->n & (c->n - 1))) { /* full at powers of two */
        size_t room = c->n ? 2 * (size_t)c->n : 1;
        struct spot *more = realloc(c->spot, room * sizeof *more);
        if (!more)
            return err_nomem(c->err, room * sizeof *more);
        c->spot = more;
    }
    struct spot *p = &c->spot[c->n++];
    *p = (struct spot){.key = a->key, .name = strdup(a->name), .id = strdup(a->id)};
    p->base = strdup(base);
    p->category = a->category && *a->category ? strdup(a->category) : NULL;
    bool whole = p->name && p->id && p->base && (p->category || !a->category || !*a->category);
    return whole ? 0 : err_nomem(c->err, 64);
}

static int each(void *user, const struct repo_adapter *a)
{
    struct map *c = user;
    bool yes;
    int rc = where_holds(c->s.r, c->where, a, &yes, c->err);
    if (rc < 0 || !yes)
        return rc;
    struct repo_adapter named = *a;
    named.base = strdup(a->base); /* may be replaced by a model's name */
    rc = named.base ? repo_name_base(c->s.r, &named, c->err) : err_nomem(c->err, 8);
    rc = rc < 0 ? rc : add_spot(c, a, named.base);
    free(named.base);
    return rc;
}

static int collect(struct map *c, struct err *err)
{
    struct repo_filter all = {0};
    c->err = err;
    int rc = repo_list(c->s.r, &all, each, c, err);
    if (rc == 0 && !c->n)
        rc = c->where ? err_set(err, ERR_IO, "no adapter is %.80s; weft list shows all", c->where)
                      : err_set(err, ERR_IO,
                                "the repository is empty; weft add FILE or FOLDER brings in what a "
                                "map can show");
    return rc;
}

/* ---- where ----------------------------------------------------------------------------------- */

static int sketches(struct map *c, float **x, int *dim, struct err *err)
{
    size_t n = (size_t)c->n;
    int64_t *key = malloc(n * sizeof *key);
    *dim = SKETCH_SIZE;
    *x = malloc(n * SKETCH_SIZE * sizeof **x);
    int rc = key && *x ? 0 : err_nomem(err, n * SKETCH_SIZE * sizeof **x);
    for (int i = 0; i < c->n && rc == 0; i++)
        key[i] = c->spot[i].key;
    progress_start(&c->s.bar);
    rc = rc < 0 ? rc : geometry_sketches(c->s.r, key, c->n, shelf_progress, &c->s, *x, err);
    progress_end(&c->s.bar);
    free(key);
    return rc;
}

/* Those that have no vector go to the end and have no place. */
static int set_aside(struct map *c, float *x, int dim, struct err *err)
{
    struct spot *aside = malloc((size_t)c->n * sizeof *aside);
    int kept = 0;
    if (!aside)
        return err_nomem(err, (size_t)c->n * sizeof *aside);
    for (int i = 0; i < c->n; i++) {
        const float *v = x + (size_t)i * (size_t)dim;
        bool any = false;
        for (int k = 0; k < dim; k++)
            any = any || v[k] != 0;
        if (any) {
            memmove(x + (size_t)kept * (size_t)dim, v, (size_t)dim * sizeof *v);
            c->spot[kept++] = c->spot[i];
        } else {
            aside[c->skipped++] = c->spot[i];
        }
    }
    c->n = kept;
    memcpy(c->spot + kept, aside, (size_t)c->skipped * sizeof *aside);
    free(aside);
    if (!kept)
        return err_set(err, ERR_UNSUPPORTED,
                       "none of %d adapters can be placed: their files are gone or changed (weft "
                       "sync looks again), or their weights need a model to be compared",
                       c->skipped);
    return 0;
}

/* Weights made for different bases have nothing in common: an island a base. */
static void number_islands(struct map *c)
{
    for (int i = 0; i < c->n; i++) {
        int k = 0;
        while (k < i && strcmp(c->spot[k].base, c->spot[i].base))
            k++;
        c->spot[i].island = k < i ? c->spot[k].island : c->islands++;
    }
}

static int lay_out(struct map *c, vectors_of *vectors, struct err *err)
{
    float *x = NULL;
    int dim, *number = NULL, rc = vectors(c, &x, &dim, err);
    rc = rc < 0 ? rc : set_aside(c, x, dim, err);
    size_t n = (size_t)c->n;
    if (rc == 0) {
        number_islands(c);
        number = malloc(n * sizeof *number);
        c->place = malloc(2 * n * sizeof *c->place);
        c->density = malloc(n * sizeof *c->density);
        rc = number && c->place && c->density ? 0 : err_nomem(err, n * sizeof *c->place);
    }
    for (int i = 0; i < c->n && rc == 0; i++)
        number[i] = c->spot[i].island;
    progress_start(&c->s.bar);
    rc = rc < 0 ? rc : layout_plane(x, c->n, dim, number, shelf_progress, &c->s, c->place, err);
    progress_end(&c->s.bar);
    rc = rc < 0 ? rc : layout_clusters(c->place, c->n, number, c->density, err);
    for (int i = 0; i < c->n && rc >= 0; i++)
        c->spot[i].cluster = number[i];
    free(x);
    free(number);
    return rc < 0 ? rc : 0;
}

/* ---- colours --------------------------------------------------------------------------------- */

enum { BY_CATEGORY, BY_BASE, BY_CLUSTER };
static const char *const ways[] = {"category", "base", "cluster", NULL};

static int way_of(const char *by)
{
    int k = 0;
    while (ways[k] && by && strcmp(ways[k], by))
        k++;
    return k;
}

/* What is said nowhere tells nothing apart. */
static int choose_way(const struct map *c)
{
    if (c->by)
        return way_of(c->by);
    for (int i = 0; i < c->n; i++)
        if (c->spot[i].category)
            return BY_CATEGORY;
    return c->islands > 1 ? BY_BASE : BY_CLUSTER;
}

static bool alike(const struct spot *p, const struct spot *q, int way)
{
    const char *a = way == BY_BASE ? p->base : p->category,
               *b = way == BY_BASE ? q->base : q->category;
    if (way == BY_CLUSTER)
        return p->cluster == q->cluster;
    return a && b ? !strcmp(a, b) : a == b;
}

/* Adapters of one colour. */
struct kind {
    int n, middle; /* middle: the one with the most neighbours */
    bool none;     /* they say nothing */
};

static int most_first(const void *a, const void *b)
{
    const struct kind *p = a, *q = b;
    if (p->none != q->none)
        return p->none - q->none;
    return p->n != q->n ? q->n - p->n : p->middle - q->middle;
}

/* All kinds there are, the largest first. kind [c->n]. */
static int find_kinds(const struct map *c, int way, struct kind *kind)
{
    int n = 0;
    for (int i = 0; i < c->n; i++) {
        int k = 0;
        while (k < n && !alike(&c->spot[kind[k].middle], &c->spot[i], way))
            k++;
        if (k == n)
            kind[n++] =
                (struct kind){.middle = i, .none = way == BY_CATEGORY && !c->spot[i].category};
        kind[k].n++;
        if (c->density[i] > c->density[kind[k].middle])
            kind[k].middle = i;
    }
    qsort(kind, (size_t)n, sizeof *kind, most_first);
    return n;
}

/* The legend's text for a kind, or for all that have no colour. A new string. */
static char *kind_text(const struct map *c, int way, const struct kind *k)
{
    const struct spot *p = &c->spot[k->middle];
    char *text = NULL;
    int n = way == BY_CLUSTER
                ? asprintf(&text, "around %s (%d)", shown(p->name), k->n)
                : asprintf(&text, "%s (%d)", shown(way == BY_BASE ? p->base : p->category), k->n);
    return n < 0 ? NULL : text;
}

/* Gives each adapter its colour, the largest kinds one of their own. text [NAMED]: new strings. */
static int colour_all(struct map *c, char **text, struct err *err)
{
    int way = choose_way(c), rest = 0, unsaid = 0;
    struct kind *kind = malloc(((size_t)c->n + 1) * sizeof *kind);
    if (!kind)
        return err_nomem(err, (size_t)c->n * sizeof *kind);
    int kinds = find_kinds(c, way, kind), rc = 0;
    if (way == BY_CLUSTER && (kinds < 2 || kind[1].n < 2))
        kinds = 0; /* one crowd at most: nothing to tell apart */
    for (int i = 0; i < kinds; i++) {
        bool own = i < SCATTER_COLOURS && !kind[i].none && (way != BY_CLUSTER || kind[i].n > 1);
        for (int k = 0; k < c->n; k++)
            if (alike(&c->spot[kind[i].middle], &c->spot[k], way))
                c->spot[k].kind = own ? i : SCATTER_COLOURS;
        if (own && !(text[i] = kind_text(c, way, &kind[i])))
            rc = err_nomem(err, 64);
        rest += own ? 0 : kind[i].n;
        unsaid += kind[i].none ? kind[i].n : 0;
    }
    if (rest && asprintf(&text[SCATTER_COLOURS], "%s (%d)",
                         unsaid == rest ? "no category" : "others", rest) < 0)
        rc = err_nomem(err, 64);
    free(kind);
    return rc;
}

/* ---- the picture ----------------------------------------------------------------------------- */

/* Strings that the picture borrows. */
struct words {
    char *kind[NAMED], *title, **name; /* name [n] */
    const char **group;                /* [islands] borrowed */
};

/* The middle of every crowd has its name first, then those next to it. */
static float weight_of(const struct map *c, int i)
{
    int before = 0;
    for (int k = 0; k < c->n; k++)
        before += c->spot[k].cluster == c->spot[i].cluster && c->density[k] > c->density[i];
    return (float)-before;
}

static int name_all(struct map *c, struct words *w, struct scatter_dot *dot, struct err *err)
{
    for (int i = 0; i < c->n; i++) {
        const struct spot *p = &c->spot[i];
        if (!(w->name[i] = strdup(shown(p->name))))
            return err_nomem(err, 64);
        w->group[p->island] = p->base;
        dot[i] = (struct scatter_dot){.x = c->place[2 * i],
                                      .y = c->place[2 * i + 1],
                                      .name = w->name[i],
                                      .kind = p->kind,
                                      .group = p->island,
                                      .weight = weight_of(c, i)};
    }
    char more[64] = "";
    if (c->skipped)
        snprintf(more, sizeof more, ", %d more cannot be placed", c->skipped);
    if (asprintf(&w->title, "%d %s%s", c->n, c->n == 1 ? "adapter" : "adapters", more) < 0)
        return err_nomem(err, 64);
    return 0;
}

static int draw(struct map *c, struct words *w, struct scatter *s, struct err *err)
{
    struct image im = {0};
    s->title = w->title;
    s->note = c->islands > 1
                  ? "Near each other: their weights do alike. Bases are islands: nothing is told "
                    "by where these lie, nor by the axes."
                  : "Near each other: their weights do alike. The axes mean nothing.";
    s->kind = (const char *const *)w->kind;
    s->kinds = NAMED;
    s->group = w->group;
    s->groups = c->islands > 1 ? c->islands : 0;
    s->w = c->size[0];
    s->h = c->size[1];
    int rc = scatter_draw(&im, s, err);
    rc = rc < 0 ? rc : image_write_png(c->out, &im, NULL, 0, err);
    image_release(&im);
    return rc;
}

static void tell_json(const struct spot *p, const struct scatter_dot *d)
{
    json_t *none = json_null();
    json_line(json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "name", json_text(p->name),
                        "id", json_text(p->id), "x", d ? json_real(d->px) : none, "y",
                        d ? json_real(d->py) : none, "category", json_text(p->category), "base",
                        json_text(p->base), "cluster", d ? json_integer(p->cluster) : none,
                        "labelled", d && d->labelled));
}

static void tell(const struct map *c, const struct scatter *s)
{
    if (!c->s.json)
        printf("%s  %d x %d, %d adapters, %d with their names\n", shown(c->out), s->w, s->h, c->n,
               s->labelled);
    for (int i = 0; i < c->n + c->skipped && c->s.json; i++)
        tell_json(&c->spot[i], i < c->n ? &s->dot[i] : NULL);
    shelf_skipped(&c->s, c->skipped);
}

static int picture(struct map *c, struct err *err)
{
    size_t n = (size_t)c->n;
    struct words w = {.name = calloc(n + 1, sizeof *w.name),
                      .group = calloc((size_t)c->islands + 1, sizeof *w.group)};
    struct scatter s = {.dot = calloc(n + 1, sizeof *s.dot), .n = c->n};
    int rc = w.name && w.group && s.dot ? 0 : err_nomem(err, n * sizeof *s.dot);
    rc = rc < 0 ? rc : colour_all(c, w.kind, err);
    rc = rc < 0 ? rc : name_all(c, &w, s.dot, err);
    rc = rc < 0 ? rc : draw(c, &w, &s, err);
    if (rc == 0)
        tell(c, &s);
    for (int i = 0; w.name && i < c->n; i++)
        free(w.name[i]);
    for (int i = 0; i < NAMED; i++)
        free(w.kind[i]);
    free(w.title);
    free(w.name);
    free(w.group);
    free(s.dot);
    return rc;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int check(struct map *c, struct err *err)
{
    if (!ways[way_of(c->by)] || (c->by && !*c->by))
        return err_set(err, ERR_ARG, "--colour takes category, base or cluster, not '%.40s'",
                       c->by);
    return where_check(c->where, err);
}

/* To write in, so that what is learnt is kept; but none is made. */
static int open_there(struct shelf *s, struct err *err)
{
    char *home = repo_home(s->home);
    bool there = home && repo_exists(home);
    free(home);
    return there ? shelf_open_any(s, err) : shelf_open(s, REPO_READ, err);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct map c = {.out = "map.png"};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 0, 0, "arguments", &err);
    rc = rc < 0 ? rc : check(&c, &err);
    rc = rc < 0 ? rc : open_there(&c.s, &err);
    rc = rc < 0 ? rc : collect(&c, &err);
    rc = rc < 0 ? rc : lay_out(&c, sketches, &err);
    rc = rc < 0 ? rc : picture(&c, &err);
    release(&c);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_map = {
    .name = "map",
    .usage = "weft map [-o map.png]",
    .about = "a picture of all adapters, those near each other whose weights do alike",
    .run = run,
    .options = make_options,
    .size = sizeof(struct map),
    .more =
        "A dot an adapter, with its name. Who is near whom is told from the weights alone, as by "
        "weft similar;\n"
        "nothing is told by far distances and by the axes. Adapters of different bases cannot do "
        "alike: each base\n"
        "is an island of its own. Dots are moved a little where names need room. Where there is no "
        "room for all\n"
        "names, the middles of crowds come first, and the picture says how many are left out. The "
        "same repository\n"
        "gives the same picture. The first call reads every file once; what it learns is kept. "
        "With --json a line\n"
        "an adapter: name, id, x and y in the picture's pixels, category, base, cluster (numbers "
        "from 0, the\n"
        "largest first) and labelled: whether its name is there. Those that cannot be placed come "
        "last, "
        "with null for\n"
        "x, y and cluster.",
};
