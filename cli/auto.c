#include "auto.h"

#include "retrieve/concepts.h"
#include "retrieve/find.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Adapters, where no number is given. Of two superpose shows 1.28 on the average, of three .70, of four .28
 * (tests/eval/compose-test.csv): one more does the others harm. */
#define MOST      2
#define ANSWER    .45 /* least answer, where there is none */
#define LOOKED_AT 200 /* for a name that says the phrase */
#define SAME      .9  /* cosine from which on two do the same */

void auto_release(struct making *m)
{
    for (int i = 0; i < m->n_pick; i++)
        free(m->pick[i].name);
    free(m->pick);
    m->pick = NULL;
    m->n_pick = 0;
}

/* ---- choosing -------------------------------------------------------------------------------- */

static bool taken(const struct making *m, struct finder *f, int64_t key)
{
    for (int i = 0; i < m->n_pick; i++)
        if (m->pick[i].key == key || finder_alike(f, m->pick[i].key, key) > SAME)
            return true;
    return false;
}

/* The score of one of the list; where scores are likelihoods, with those that do the same. */
static double worth(struct finder *f, const struct found *list, int n, int at)
{
    enum { NEAR = 8 };
    double score = list[at].score;
    for (int i = at + 1; !isnan(finder_least(f)) && i < n && i <= at + NEAR; i++)
        if (finder_alike(f, list[at].key, list[i].key) > SAME)
            score += list[i].score;
    return score;
}

/* Whether its name or one of its triggers says the phrase. */
static int says(struct making *m, int64_t key, const char *phrase, bool *yes, struct err *err)
{
    struct repo_adapter a;
    struct texts t = {0};
    int rc = repo_at(m->repo, key, &a, err);
    *yes = false;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = repo_texts(m->repo, key, REPO_TRIGGERS, &t, err);
    *yes = rc == 0 && concepts_says(a.name, phrase);
    for (int i = 0; i < t.n && rc == 0; i++)
        *yes = *yes || concepts_says(t.item[i], phrase);
    texts_release(&t);
    repo_adapter_release(&a);
    return rc;
}

/* Which of the list is taken for a phrase, n: none. */
struct choice {
    int at;
    bool named;
    double score, least;
};

static int choose(struct making *m, struct finder *f, const char *phrase, const struct found *list,
                  int n, struct choice *c, struct err *err)
{
    bool likely = !isnan(finder_least(f));
    double least = likely ? finder_least(f) : ANSWER, enough = likely ? least / 10 : least / 2;
    int best = n, rc = 0;
    *c = (struct choice){.at = n, .least = least};
    for (int i = 0; i < n && i < LOOKED_AT && list[i].score > 0 && c->at == n && rc == 0; i++) {
        if (taken(m, f, list[i].key))
            continue;
        best = best == n ? i : best;
        if (list[i].score >= enough)
            rc = says(m, list[i].key, phrase, &c->named, err);
        c->at = c->named ? i : n;
    }
    c->score = best < n ? worth(f, list, n, best) : 0;
    if (c->named)
        c->score = list[c->at].score;
    else if (c->score >= least)
        c->at = best;
    return rc;
}

static int pick(struct making *m, struct finder *f, const struct concept *c,
                const struct found *list, int n, struct err *err)
{
    struct choice best;
    int rc = choose(m, f, c->text, list, n, &best, err);
    if (rc < 0)
        return rc;
    if (best.at == n) {
        if (m->verbose)
            fprintf(stderr, "%s: nothing fits (best %.2f, %.2f is asked for)\n", c->text,
                    best.score, best.least);
        return 0;
    }
    struct auto_pick *more = realloc(m->pick, ((size_t)m->n_pick + 1) * sizeof *more);
    if (!more)
        return err_nomem(err, sizeof *more);
    m->pick = more;
    struct repo_adapter a;
    rc = repo_at(m->repo, list[best.at].key, &a, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    struct auto_pick *p = &m->pick[m->n_pick];
    *p = (struct auto_pick){.name = strdup(a.name),
                            .key = a.key,
                            .at = c->at,
                            .n = c->n,
                            .named = best.named,
                            .score = best.score,
                            .next = best.at + 1 < n ? list[best.at + 1].score : 0};
    snprintf(p->phrase, sizeof p->phrase, "%s", c->text);
    repo_adapter_release(&a);
    if (!p->name)
        return err_nomem(err, 64);
    m->n_pick++;
    if (m->verbose)
        fprintf(stderr, "%s: %s, %.2f%s; the next %.2f\n", p->phrase, p->name, p->score,
                p->named ? ", and it says so" : "", p->next);
    return 0;
}

/* One that says the phrase itself goes before all others. */
static double sure(const struct auto_pick *p)
{
    return p->score + p->named;
}

/* The least likely go until `most` are left. */
static void leave_out(struct making *m, int most)
{
    while (m->n_pick > most) {
        int least = 0;
        for (int i = 1; i < m->n_pick; i++)
            if (sure(&m->pick[i]) < sure(&m->pick[least]))
                least = i;
        fprintf(stderr,
                "--auto: %s is left out, so many share a picture badly; --auto=%d takes it\n",
                m->pick[least].name, m->n_pick);
        free(m->pick[least].name);
        m->n_pick--;
        memmove(m->pick + least, m->pick + least + 1,
                (size_t)(m->n_pick - least) * sizeof *m->pick);
    }
}

static int pick_all(struct making *m, struct finder *f, int most, struct err *err)
{
    struct concept c[CONCEPTS_MOST];
    int n = concepts_split(m->r.prompt, c), unread, rc = finder_read(f, NULL, NULL, &unread, err);
    for (int i = 0; i < n && rc == 0; i++) {
        char text[128];
        struct found *list = NULL;
        int found = 0;
        snprintf(text, sizeof text, "a %s", c[i].text);
        rc = finder_ask(f, text, &list, &found, err);
        rc = rc < 0 ? rc : pick(m, f, &c[i], list, found, err);
        free(list);
    }
    leave_out(m, most);
    return rc;
}

/* ---- the request ----------------------------------------------------------------------------- */

/* prompt [at, at + n) becomes text. */
static int put(char **prompt, size_t at, size_t n, const char *text, struct err *err)
{
    char *made = NULL;
    if (asprintf(&made, "%.*s%s%s", (int)at, *prompt, text, *prompt + at + n) < 0)
        return err_nomem(err, strlen(*prompt));
    free(*prompt);
    *prompt = made;
    return 0;
}

/* The first group of its trigger words into the phrase, unless the prompt has them. */
static int put_trigger(struct making *m, const struct auto_pick *p, struct err *err)
{
    struct texts t = {0};
    struct repo_adapter a;
    char phrase[96], *made = NULL;
    int rc = repo_at(m->repo, p->key, &a, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = repo_texts(m->repo, p->key, REPO_TRIGGERS, &t, err);
    const char *trigger = rc == 0 && t.n ? t.item[0] : NULL;
    if (trigger && !strcasestr(m->r.prompt, trigger)) {
        const char *last = strrchr(trigger, ' ');
        const char *word = a.class_word && *a.class_word ? a.class_word : last ? last + 1 : trigger;
        snprintf(phrase, sizeof phrase, "%s", p->phrase);
        char *here = strcasestr(phrase, word);
        int whole = here ? asprintf(&made, "%.*s%s%s", (int)(here - phrase), phrase, trigger,
                                    here + strlen(word))
                         : asprintf(&made, "%s %s", trigger, phrase);
        rc = whole < 0 ? err_nomem(err, 128) : put(&m->r.prompt, p->at, p->n, made, err);
        free(made);
    }
    texts_release(&t);
    repo_adapter_release(&a);
    return rc;
}

static int propose(struct making *m, struct err *err)
{
    char list[300] = "", how[60] = "";
    for (int i = 0; i < m->n_pick; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), " -a %.40s", m->pick[i].name);
    if (m->n_pick > 1)
        snprintf(how, sizeof how, " --compose %s", making_best(m));
    return err_set(err, ERR_MISMATCH,
                   "--auto proposes%s%s; how sure that is was not measured on this model: --yes "
                   "takes it",
                   list, how);
}

int auto_choose(struct making *m, struct err *err)
{
    struct finder *f = NULL;
    auto_release(m);
    int rc = m->repo ? 0
                     : err_set(err, ERR_ARG,
                               "--auto chooses from the repository, and there is none; weft add "
                               "makes one");
    rc = rc < 0 ? rc : making_finder(m, &f, err);
    rc = rc < 0 ? rc : pick_all(m, f, m->choose > 0 ? m->choose : MOST, err);
    bool likely = rc == 0 && !isnan(finder_least(f));
    finder_close(f);
    if (rc == 0 && m->n_pick && !likely && !m->yes)
        return propose(m, err);
    if (rc == 0 && !m->n_pick)
        fputs("--auto: no adapter fits the prompt\n", stderr);
    for (int i = m->n_pick - 1; i >= 0 && rc == 0; i--) /* places before stay good */
        rc = put_trigger(m, &m->pick[i], err);
    for (int i = 0; i < m->n_pick && rc == 0; i++)
        rc = request_add_adapter(&m->r, m->pick[i].name, err);
    if (rc == 0 && m->n_pick > 1 && !m->r.compose)
        rc = request_set(&m->r.compose, making_best(m), err);
    return rc;
}
