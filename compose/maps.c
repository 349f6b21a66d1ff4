#include "maps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Maps of all adapters on one grid. */
struct grid {
    int h, w;
    /* [adapters, h*w]: of this step, of all so far, what follows, one attention's at its own size; [h*w] one map */
    float *now, *past, *mask, *site, *wide;
    float *weight; /* [adapters], of what `now` has */
    int *owner;    /* [h*w] */
    bool begun;    /* `past` has something */
};

struct maps {
    const struct model *m;
    const struct picture *p;
    bool gates;
    int n, n_text, tokens;
    struct mask **mask;                 /* [n], NULL: everywhere */
    struct mask **routed[ROUTE_LEVELS]; /* [n] each; NULL: the strategy routes nothing */
    unsigned char *owns;                /* [texts, n, tokens]: 1: the token is the adapter's */
    struct grid grid;
    float *host; /* what is up- and downloaded; grows while measuring */
    size_t room;
};

/* [tokens]: which are an adapter's. */
static unsigned char *tokens_of(const struct maps *m, int text, int i)
{
    return m->owns + (size_t)(text * m->n + i) * (size_t)m->tokens;
}

const unsigned char *maps_tokens(const struct maps *m, int text, int i, int *n)
{
    *n = m->tokens;
    return tokens_of(m, text, i);
}

static bool is_there(const struct maps *m, int text, int i)
{
    return memchr(tokens_of(m, text, i), 1, (size_t)m->tokens);
}

/* Whether an adapter's mask follows its words. */
static bool divides(const struct maps *m, int i)
{
    return m->mask[i] && !m->p->use[i].where;
}

/* ---- words ----------------------------------------------------------------------------------- */

enum { MAPS_ROUNDS = 15 };
#define MAPS_RATE 1.f /* of the biases that even out who has how much */

enum { PHRASE_MAX = 256 }; /* ids; what is longer is not looked for */

/* The ids by which a phrase stands in texts, 0 to PHRASE_MAX: those of a word with vectors of its own, if the whole
 * phrase is one, else its tokens. */
static int phrase_ids(const struct tokenizer *t, struct words *words, const char *phrase,
                      int32_t *id, struct err *err)
{
    int word = words ? words_find(words, phrase) : -1, n = 0;
    int32_t first = 0;
    if (word >= 0 && words_used(words, word)) {
        int rc = words_use(words, word, &first, &n, err);
        for (int i = 0; i < n && i < PHRASE_MAX; i++)
            id[i] = first - i;
        return rc < 0 ? rc : n <= PHRASE_MAX ? n : 0;
    }
    struct tokens ids = {0};
    struct err none; /* what is no text stands nowhere */
    if (tokenizer_encode(t, phrase, -1, &ids, &none) == 0 && ids.n <= PHRASE_MAX) {
        n = (int)ids.n;
        for (int i = 0; i < n; i++)
            id[i] = ids.id[i];
    }
    tokens_release(&ids);
    return n;
}

/* The first place of n ids in a text where none belongs to an adapter before i; -1: nowhere. */
static int place_of(const struct maps *m, const struct conditions *cond, int text, int i,
                    const int32_t *id, int n)
{
    const int32_t *all = cond->chunks[text].id;
    const unsigned char *owns = tokens_of(m, text, 0);
    for (int at = 0; n > 0 && at + n <= m->tokens; at++) {
        bool same = !memcmp(all + at, id, (size_t)n * sizeof *id);
        for (int k = 0; k < i && same; k++)
            for (int j = at; j < at + n && same; j++)
                same = !owns[k * m->tokens + j];
        if (same)
            return at;
    }
    return -1;
}

/* Marks a group's phrases, which stand between commas, in one text; *found: all of them are there, else none is
 * marked. group is used up. */
static int mark_group(struct maps *m, const struct conditions *cond, struct words *words, int text,
                      int i, char *group, bool *found, struct err *err)
{
    unsigned char *own = tokens_of(m, text, i);
    char *rest = group, *one;
    *found = true;
    while (*found && (one = strsep(&rest, ",")) != NULL) {
        int32_t id[PHRASE_MAX];
        size_t len = strlen(one += strspn(one, " "));
        while (len && one[len - 1] == ' ')
            one[--len] = 0;
        int n = phrase_ids(m->m->tokenizer, words, one, id, err);
        if (n < 0)
            return n;
        int at = place_of(m, cond, text, i, id, n);
        *found = at >= 0;
        if (*found)
            memset(own + at, 1, (size_t)n);
    }
    if (!*found)
        memset(own, 0, (size_t)m->tokens);
    return 0;
}

/* Adapter i's words in one text: the first of these groups, a line each, that is there. */
static int mark_words(struct maps *m, const struct conditions *cond, struct words *words, int text,
                      int i, const char *groups, bool *any, struct err *err)
{
    bool found = false;
    int rc = 0;
    for (const char *g = groups; g && *g && !found && rc == 0;) {
        size_t len = strcspn(g, "\n");
        char *one = strndup(g, len);
        rc = one ? mark_group(m, cond, words, text, i, one, &found, err) : err_nomem(err, len);
        free(one);
        g += len + (g[len] == '\n');
    }
    *any |= found;
    return rc;
}

int maps_say(struct maps *m, const struct conditions *cond, int text, int i, const char *groups,
             struct err *err)
{
    bool any = false;
    return mark_words(m, cond, m->p->words, text, i, groups, &any, err);
}

int maps_open(struct maps **out, const struct model *m, const struct picture *p,
              const struct conditions *cond, const struct compose_strategy *how, struct err *err)
{
    struct maps *a = calloc(1, sizeof *a);
    int rc = a ? 0 : err_nomem(err, sizeof *a);
    *out = a;
    if (rc < 0)
        return rc;
    a->m = m;
    a->p = p;
    a->gates = how->gates;
    a->n = p->n_use;
    a->n_text = cond->n_text;
    a->tokens = cond->n_chunk * cond->length;
    a->mask = calloc((size_t)a->n + 1, sizeof *a->mask);
    a->owns = calloc((size_t)a->n_text * (size_t)a->n * (size_t)a->tokens + 1, sizeof *a->owns);
    a->grid.weight = calloc((size_t)a->n + 1, sizeof *a->grid.weight);
    bool room = a->mask && a->owns && a->grid.weight;
    for (int k = 0; k < ROUTE_LEVELS && how->routes; k++)
        room = (a->routed[k] = calloc((size_t)a->n + 1, sizeof *a->routed[k])) && room;
    if (!room)
        rc = err_nomem(err, (size_t)a->n * (size_t)a->tokens);
    for (int i = 0; i < a->n && rc == 0; i++) {
        bool any = p->use[i].where;
        for (int k = 0; k < cond->n_own && rc == 0 && !p->use[i].where; k++)
            rc = mark_words(a, cond, p->words, k, i, p->use[i].words, &any, err);
        if (rc == 0 && any)
            rc = mask_new(&a->mask[i], m->dev, err);
        for (int k = 0; k < ROUTE_LEVELS && rc == 0 && how->routes && divides(a, i); k++)
            rc = mask_new(&a->routed[k][i], m->dev, err);
    }
    if (rc < 0) {
        maps_close(a);
        *out = NULL;
    }
    return rc;
}

void maps_close(struct maps *m)
{
    if (!m)
        return;
    for (int i = 0; m->mask && i < m->n; i++)
        mask_free(m->mask[i]);
    for (int k = 0; k < ROUTE_LEVELS; k++) {
        for (int i = 0; m->routed[k] && i < m->n; i++)
            mask_free(m->routed[k][i]);
        free(m->routed[k]);
    }
    free(m->mask);
    free(m->owns);
    free(m->grid.now);
    free(m->grid.owner);
    free(m->grid.weight);
    free(m->host);
    free(m);
}

struct mask *maps_mask(const struct maps *m, int i, bool attends)
{
    return m->p->use[i].where || (attends && !m->gates) ? m->mask[i] : NULL;
}

struct mask *maps_words(const struct maps *m, int i)
{
    return m->gates && divides(m, i) ? m->mask[i] : NULL;
}

struct mask *maps_routed(const struct maps *m, int i, enum route_level level)
{
    return m->routed[level] ? m->routed[level][i] : NULL;
}

static void forget_step(struct grid *g, int n)
{
    memset(g->weight, 0, (size_t)n * sizeof *g->weight);
    if (g->now)
        memset(g->now, 0, (size_t)n * (size_t)g->h * (size_t)g->w * sizeof *g->now);
}

void maps_restart(struct maps *m)
{
    const float none = m->gates ? 0 : 1;
    m->grid.begun = false;
    forget_step(&m->grid, m->n);
    for (int i = 0; i < m->n; i++) {
        const struct use *u = &m->p->use[i];
        if (u->where)
            mask_set(m->mask[i], u->where, u->where_h, u->where_w);
        else if (m->mask[i])
            mask_set(m->mask[i], &none, 1, 1);
        for (int k = 0; k < ROUTE_LEVELS; k++)
            if (maps_routed(m, i, (enum route_level)k))
                mask_set(m->routed[k][i], &none, 1, 1);
    }
}

const float *maps_values(const struct maps *m, int i, int *h, int *w)
{
    const struct use *u = &m->p->use[i];
    *h = u->where ? u->where_h : m->grid.h;
    *w = u->where ? u->where_w : m->grid.w;
    if (u->where)
        return u->where;
    return !m->gates && divides(m, i) && m->grid.begun
               ? m->grid.mask + (size_t)i * (size_t)*h * (size_t)*w
               : NULL;
}

/* ---- maps ------------------------------------------------------------------------------------ */

/* Room for what one attention brings; while measuring. */
static int make_room(struct maps *m, const struct tensor *q, const struct tensor *k,
                     struct err *err)
{
    struct grid *g = &m->grid;
    size_t places = (size_t)q->h * (size_t)q->w, tokens = (size_t)k->h * (size_t)k->w,
           need = (places > tokens ? places : tokens) * (size_t)q->c;
    if (need > m->room) {
        float *more = realloc(m->host, need * sizeof *more);
        if (!more)
            return err_nomem(err, need * sizeof *more);
        m->host = more;
        m->room = need;
    }
    if (places > (size_t)g->h * (size_t)g->w) {
        size_t all = places * (size_t)m->n;
        free(g->now);
        free(g->owner);
        g->now = calloc(4 * all + places + 1, sizeof *g->now);
        g->owner = calloc(places + 1, sizeof *g->owner);
        if (!g->now || !g->owner)
            return err_nomem(err, 4 * all * sizeof *g->now);
        g->past = g->now + all;
        g->mask = g->past + all;
        g->site = g->mask + all;
        g->wide = g->site + all;
        g->h = q->h;
        g->w = q->w;
    }
    return 0;
}

/* Whose tokens these are, as values [tokens, c]: adapters first .. first + n, a channel each in every head. */
static void write_values(const struct maps *m, float *v, int text, int first, int n, size_t c,
                         size_t d)
{
    memset(v, 0, (size_t)m->tokens * c * sizeof *v);
    for (int i = 0; i < n; i++) {
        const unsigned char *own = tokens_of(m, text, first + i);
        for (int j = 0; j < m->tokens; j++)
            for (size_t e = (size_t)i; e < c && own[j]; e += d)
                v[(size_t)j * c + e] = 1;
    }
}

/* b [places] from o [places, c], to which each head's channel of this adapter brought its shares. */
static void even_out(float *b, const float *o, size_t places, size_t c, size_t d, size_t channel)
{
    double mean = 0;
    for (size_t p = 0; p < places; p++) {
        b[p] = 0;
        for (size_t e = channel; e < c; e += d)
            b[p] += o[p * c + e];
        mean += (double)b[p] / (double)places;
    }
    for (size_t p = 0; p < places && mean > 0; p++)
        b[p] /= (float)mean;
}

/* How much two maps, whose means are 1, exclude each other: less their correlation, if that is below 0. */
static double apart(const float *a, const float *b, size_t places)
{
    double ab = 0, aa = 0, bb = 0;
    for (size_t p = 0; p < places; p++) {
        double x = (double)a[p] - 1, y = (double)b[p] - 1;
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    return ab < 0 && aa > 0 && bb > 0 ? -ab / sqrt(aa * bb) : 0;
}

/* The maps of one attention, [n, places], onto the grid. */
static void take(struct maps *m, const struct tensor *q, int text)
{
    struct grid *g = &m->grid;
    size_t places = (size_t)q->h * (size_t)q->w, all = (size_t)g->h * (size_t)g->w;
    double sum = 0;
    int pairs = 0;
    for (int i = 0; i < m->n; i++)
        for (int k = 0; k < i; k++)
            if (is_there(m, text, i) && is_there(m, text, k)) {
                sum += apart(g->site + (size_t)i * places, g->site + (size_t)k * places, places);
                pairs++;
            }
    float w = fmaxf(pairs ? (float)(sum / pairs * sum / pairs) : 1, 1e-6f);
    for (int i = 0; i < m->n; i++) {
        float *now = g->now + (size_t)i * all;
        if (!is_there(m, text, i))
            continue;
        mask_resample(g->wide, g->h, g->w, g->site + (size_t)i * places, q->h, q->w);
        for (size_t p = 0; p < all; p++)
            now[p] += w * g->wide[p];
        g->weight[i] += w;
    }
}

int maps_add(struct maps *m, struct run *r, int cross, const struct tensor *q,
             const struct tensor *k, const struct attention *how, int row, int text,
             struct err *err)
{
    size_t d = (size_t)(q->c / how->heads), places = (size_t)q->h * (size_t)q->w;
    if (cross < m->m->unet->up_cross || places > MAPS_PLACES)
        return 0;
    int rc = r->measuring ? make_room(m, q, k, err) : 0;
    unsigned mark = run_mark(r);
    struct tensor qs = tensor_rows(q, row, 1), ks = tensor_rows(k, row, 1);
    struct tensor v = run_like(r, &ks), o = run_like(r, &qs);
    bool live = !r->measuring && rc == 0 && !r->err.code;
    for (int first = 0; first < m->n && rc == 0; first += (int)d) {
        int n = m->n - first < (int)d ? m->n - first : (int)d;
        write_values(m, m->host, text, first, n, (size_t)q->c, d);
        op_upload(r, &v, m->host);
        op_attention(r, &o, &qs, &ks, &v, how);
        rc = live ? r->dev->be->download(r->dev, m->host, &o, err) : 0;
        for (int i = 0; i < n && live && rc == 0; i++)
            even_out(m->grid.site + (size_t)(first + i) * places, m->host, places, (size_t)q->c, d,
                     (size_t)i);
    }
    if (live && rc == 0)
        take(m, q, text);
    run_pop(r, mark);
    return rc;
}

/* ---- masks ----------------------------------------------------------------------------------- */

static float *mask_of(struct maps *m, int i, size_t place)
{
    const struct grid *g = &m->grid;
    return g->mask + (size_t)i * (size_t)g->h * (size_t)g->w + place;
}

static float past_of(const struct maps *m, int i, size_t place)
{
    const struct grid *g = &m->grid;
    return fmaxf(g->past[(size_t)i * (size_t)g->h * (size_t)g->w + place], 1e-6f);
}

/* How much of each adapter acts at a place. */
static void divide(struct maps *m, size_t place, const struct attend *how)
{
    float sum = 0;
    for (int i = 0; i < m->n; i++) {
        float *at = mask_of(m, i, place);
        *at = divides(m, i) ? powf(past_of(m, i, place), how->sharp) : 0;
        sum += *at;
    }
    for (int i = 0; i < m->n; i++) {
        float *at = mask_of(m, i, place);
        *at = how->leak + (1 - how->leak) * *at / sum;
    }
}

/* Whose each place is: the adapter's with the largest ln M_i + bias_i, the biases being such that all have about as many
 * places; -1: nobody's. */
static void find_owners(const struct maps *m, int *owner)
{
    size_t all = (size_t)m->grid.h * (size_t)m->grid.w;
    float bias[COMPOSE_MAX_ADAPTERS] = {0};
    int n = 0;
    for (int i = 0; i < m->n; i++)
        n += divides(m, i);
    for (int round = 0; round < MAPS_ROUNDS; round++) {
        float count[COMPOSE_MAX_ADAPTERS] = {0};
        for (size_t p = 0; p < all; p++) {
            float most = -INFINITY;
            owner[p] = -1;
            for (int i = 0; i < m->n; i++) {
                float x = divides(m, i) ? logf(past_of(m, i, p)) + bias[i] : -INFINITY;
                owner[p] = x > most ? i : owner[p];
                most = fmaxf(x, most);
            }
            if (owner[p] >= 0)
                count[owner[p]] += 1 / (float)all;
        }
        for (int i = 0; i < m->n && n; i++)
            bias[i] += MAPS_RATE * (1 / (float)n - count[i]);
    }
}

/* The owner of most of the places around one, of equals its own. */
static int vote(const struct maps *m, const int *owner, int y, int x)
{
    const struct grid *g = &m->grid;
    int count[COMPOSE_MAX_ADAPTERS] = {0}, own = owner[y * g->w + x], best = own;
    for (int i = y - 1; i <= y + 1; i++)
        for (int j = x - 1; j <= x + 1; j++)
            if (i >= 0 && i < g->h && j >= 0 && j < g->w && owner[i * g->w + j] >= 0)
                count[owner[i * g->w + j]]++;
    for (int i = 0; i < m->n && own >= 0; i++)
        best = count[i] > count[best] ? i : best;
    return best;
}

/* Each place to one adapter; of the others `leak` acts there. */
static void share_out(struct maps *m, float leak)
{
    struct grid *g = &m->grid;
    find_owners(m, g->owner);
    for (int y = 0; y < g->h; y++)
        for (int x = 0; x < g->w; x++) {
            int of = vote(m, g->owner, y, x);
            for (int i = 0; i < m->n; i++)
                *mask_of(m, i, (size_t)(y * g->w + x)) = i == of ? 1 : leak;
        }
}

/* w of each at a place. */
static void see(struct maps *m, size_t place)
{
    float sum = 0;
    int n = 0;
    for (int i = 0; i < m->n; i++)
        if (divides(m, i)) {
            sum += *mask_of(m, i, place) = logf(past_of(m, i, place));
            n++;
        }
    for (int i = 0; i < m->n; i++) {
        float *at = mask_of(m, i, place);
        if (divides(m, i))
            *at =
                n > 1 ? fmaxf(fminf(*at - (sum - *at) / (float)(n - 1), MAPS_MOST), -MAPS_MOST) : 0;
    }
}

/* Shuts all at a place but the `top` whose w is largest; of equal ones the first. */
static void shut(struct maps *m, size_t place, int top)
{
    bool open[COMPOSE_MAX_ADAPTERS] = {false};
    for (int k = 0; k < top; k++) {
        int best = -1;
        for (int i = 0; i < m->n; i++)
            if (divides(m, i) && !open[i] &&
                (best < 0 || *mask_of(m, i, place) > *mask_of(m, best, place)))
                best = i;
        if (best >= 0)
            open[best] = true;
    }
    for (int i = 0; i < m->n; i++)
        if (!open[i])
            *mask_of(m, i, place) = GATE_SHUT;
}

static void put(struct maps *m, struct mask *const *to)
{
    for (int i = 0; i < m->n; i++)
        if (divides(m, i))
            mask_set(to[i], mask_of(m, i, 0), m->grid.h, m->grid.w);
}

void maps_turn(struct maps *m, const struct attend *how)
{
    struct grid *g = &m->grid;
    size_t all = (size_t)g->h * (size_t)g->w;
    float keep = g->begun ? how->keep : 0;
    bool any = false;
    for (int i = 0; i < m->n; i++) {
        float *now = g->now + (size_t)i * all, *past = g->past + (size_t)i * all;
        for (size_t p = 0; p < all && g->weight[i] > 0; p++)
            past[p] = keep * past[p] + (1 - keep) * now[p] / g->weight[i];
        any |= g->weight[i] > 0;
    }
    if (!any)
        return;
    g->begun = true;
    forget_step(g, m->n);
    if (how->when == ATTEND_LOOK)
        share_out(m, how->leak);
    for (size_t p = 0; p < all && how->when != ATTEND_LOOK; p++)
        if (m->gates)
            see(m, p);
        else
            divide(m, p, how);
    put(m, m->mask);
    for (int k = 0; k < ROUTE_LEVELS; k++)
        if (m->routed[k]) {
            for (size_t p = 0; p < all; p++)
                see(m, p);
            for (size_t p = 0; p < all && how->top[k] > 0; p++)
                shut(m, p, how->top[k]);
            put(m, m->routed[k]);
        }
}

const float *maps_attended(struct maps *m, int i, int *h, int *w)
{
    struct grid *g = &m->grid;
    size_t all = (size_t)g->h * (size_t)g->w;
    float most = 0;
    *h = g->h;
    *w = g->w;
    if (!g->begun || !divides(m, i))
        return NULL;
    for (size_t p = 0; p < all; p++)
        most = fmaxf(most, past_of(m, i, p));
    for (size_t p = 0; p < all; p++)
        g->wide[p] = past_of(m, i, p) / most;
    return g->wide;
}
