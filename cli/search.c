/* weft search: finds adapters by what their weights do and by words. */
#include "making.h"
#include "shelf.h"
#include "where.h"

#include "retrieve/find.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 1000 }; /* hits by words that are ranked */

struct hit { /* by words */
    struct found f;
    char *why; /* owned */
};

struct search {
    struct shelf s;
    struct making m;
    const char *where;
    int limit;
    bool weights_only, words_only;
    bool likely;      /* scores by weights are likelihoods */
    struct finder *f; /* NULL: by words alone */

    char *text; /* the query; owned */
    struct hit *words;
    struct found *weights;
    int n_words, n_weights, shown;
    struct err *err;
};

static void make_options(struct option *o, void *target)
{
    struct search *c = target;
    const struct option table[] = {
        {"limit", 'k', OPTION_INT, &c->limit, "N", "at most so many; default 20", 1, 1e9, NULL},
        WHERE_OPTION(&c->where),
        {"for", 0, OPTION_TEXT, &c->m.given.model, "MODEL",
         "the model whose adapters are looked at by their weights; default:\nas of weft render", 0,
         0, NULL},
        {"weights-only", 0, OPTION_FLAG, &c->weights_only, NULL, "whatever is written about them",
         0, 0, NULL},
        {"words-only", 0, OPTION_FLAG, &c->words_only, NULL, "without a model", 0, 0, NULL},
        {"threads", 't', OPTION_INT, &c->m.on.threads, "N", "default: all processors", 1, 1024,
         NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* ---- by words -------------------------------------------------------------------------------- */

static int add_hit(void *user, const struct repo_adapter *a, double score, const char *why)
{
    struct search *c = user;
    if (!(c->n_words & (c->n_words - 1))) { /* full at powers of two */
        size_t room = c->n_words ? 2 * (size_t)c->n_words : 1;
        struct hit *more = realloc(c->words, room * sizeof *more);
        if (!more)
            return err_nomem(c->err, room * sizeof *more);
        c->words = more;
    }
    c->words[c->n_words] = (struct hit){{.key = a->key, .score = score}, strdup(why ? why : "")};
    return c->words[c->n_words++].why ? 0 : err_nomem(c->err, 64);
}

static const char *found_words(const struct search *c, int64_t key)
{
    for (int i = 0; i < c->n_words; i++)
        if (c->words[i].f.key == key)
            return c->words[i].why;
    return NULL;
}

/* ---- by weights ------------------------------------------------------------------------------ */

static const struct found *found_weights(const struct search *c, int64_t key)
{
    for (int i = 0; i < c->n_weights; i++)
        if (c->weights[i].key == key)
            return &c->weights[i];
    return NULL;
}

/* Those that answer to the text more than others do. */
static int look_at_weights(struct search *c, struct err *err)
{
    int n = 0, rc = shelf_finder(&c->s, &c->m, c->weights_only, &c->f, err);
    if (rc == 1) /* words are left */
        return 0;
    rc = rc < 0 ? rc : finder_ask(c->f, c->text, &c->weights, &c->n_weights, err);
    c->likely = rc == 0 && !isnan(finder_least(c->f));
    for (int i = 0; i < c->n_weights && rc == 0; i++)
        if (c->likely || c->weights[i].score > 0)
            c->weights[n++] = c->weights[i];
    c->n_weights = n;
    return rc;
}

/* ---- what is told ---------------------------------------------------------------------------- */

static int tell(struct search *c, const struct repo_adapter *a, double score, struct err *err)
{
    const struct found *w = found_weights(c, a->key);
    const char *words = found_words(c, a->key);
    char why[600], where[200] = "";
    int rc = w && c->f ? finder_where(c->f, a->key, *w->word ? w->word : c->text, where,
                                      sizeof where, err)
                       : 0;
    snprintf(why, sizeof why, "%.300s", words ? words : "");
    if (w && c->likely)
        snprintf(why + strlen(why), sizeof why - strlen(why), "%s%.0f %% likely by its weights; ",
                 words ? "; " : "", 100 * w->score);
    if (w)
        snprintf(why + strlen(why), sizeof why - strlen(why),
                 "%sthey answer %.1f times as loudly as to other texts%s%s%s%s",
                 words && !c->likely ? "; " : "", exp(w->answer), *w->word ? ", most to " : "",
                 w->word, *where ? ", in " : "", where);
    c->shown++;
    if (c->s.json) {
        json_line(json_pack("{s:o, s:o, s:f, s:o}", "name", json_text(a->name), "id",
                            json_text(a->id), "score", score, "why", json_text(why)));
        return rc;
    }
    adapter_line(a);
    printf("    %s%s%s\n", colour("dim"), shown(why), colour(""));
    return rc;
}

static int tell_all(struct search *c, struct err *err)
{
    struct found *list = NULL, *words = malloc(((size_t)c->n_words + 1) * sizeof *words);
    const struct found *const both[] = {words, c->weights};
    const int n[] = {c->n_words, c->n_weights};
    bool fused = c->n_words && c->n_weights;
    int total = 0, rc = words ? 0 : err_nomem(err, (size_t)c->n_words * sizeof *words);
    for (int i = 0; i < c->n_words && rc == 0; i++)
        words[i] = c->words[i].f;
    rc = rc < 0 ? rc : find_fuse(both, n, 2, &list, &total, err);
    for (int i = 0; i < total && c->shown < c->limit && rc == 0; i++) {
        struct repo_adapter a;
        bool yes = false;
        rc = repo_at(c->s.r, list[i].key, &a, err);
        if (rc != 0)
            continue;
        rc = where_holds(c->s.r, c->where, &a, &yes, err);
        const struct found *w = found_weights(c, a.key);
        double own = w ? w->score : c->n_words ? c->words[i].f.score : 0;
        if (rc == 0 && yes)
            rc = tell(c, &a, fused ? list[i].score : own, err);
        repo_adapter_release(&a);
    }
    free(list);
    free(words);
    if (rc == 0 && !c->shown && !c->s.json)
        puts(c->words_only ? "nothing has these words"
                           : "nothing has these words or answers to them");
    return rc < 0 ? rc : 0;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int join(struct search *c, struct err *err)
{
    size_t size = 0;
    FILE *f = open_memstream(&c->text, &size);
    for (int i = 0; f && i < c->s.n; i++)
        fprintf(f, "%s%s", i ? " " : "", c->s.rest[i]);
    if (!f || fclose(f))
        return err_nomem(err, size);
    if (c->weights_only && c->words_only)
        return err_set(err, ERR_ARG, "--weights-only and --words-only leave nothing");
    return where_check(c->where, err);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct search c = {.limit = 20, .m.on.name = "cpu"};
    struct option o[OPTIONS_MAX];
    struct err err;

    (void)self;
    err_clear(&err);
    c.err = &err;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, -1, "words", &err);
    rc = rc < 0 ? rc : join(&c, &err);
    if (rc == 0)
        rc = c.words_only ? shelf_open(&c.s, REPO_READ, &err) : shelf_open_any(&c.s, &err);
    if (rc == 0 && !c.weights_only)
        rc = repo_search(c.s.r, c.text, c.words_only ? c.limit : MOST_WORDS, add_hit, &c, &err);
    rc = rc < 0 ? rc : err.code;
    rc = rc < 0 || c.words_only ? rc : look_at_weights(&c, &err);
    rc = rc < 0 ? rc : tell_all(&c, &err);
    for (int i = 0; i < c.n_words; i++)
        free(c.words[i].why);
    free(c.words);
    free(c.weights);
    finder_close(c.f);
    free(c.text);
    c.m.repo = NULL; /* the shelf's */
    making_release(&c.m);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_search = {
    .name = "search",
    .usage = "weft search WORDS",
    .about = "adapters that can do what the words say, by their weights and by what is written",
    .run = run,
    .options = make_options,
    .size = sizeof(struct search),
    .more =
        "By weights: how much an adapter changes what the model's cross attentions make of these "
        "words, beside\n"
        "what it changes for plain captions; names and metadata play no part. Each file is read "
        "once for that,\n"
        "what is learnt is kept. By words: all must occur, each as the beginning of a word, in the "
        "name, tags,\n"
        "triggers, notes or metadata; words in double quotes exactly as they stand. Both lists are "
        "joined by the\n"
        "places in them. Of a word that more than 5,000 have, those are first that have it in the "
        "name, then in\n"
        "tags and triggers, the newest first.",
};
