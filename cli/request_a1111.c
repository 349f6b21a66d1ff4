/* The `parameters` text: a request from that of a picture that another program made, and one as others read it. */
#include "cli.h"
#include "infotext.h"
#include "request.h"

#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- adapters -------------------------------------------------------------------------------- */

struct rewrite {
    struct request *r;
    char *prompt;  /* owned; names become those of the repository */
    char *missing; /* owned; names that are not here, with commas between */
    struct err *err;
};

/* Every <lora:FROM: or <lora:FROM> of the prompt gets another name. */
static int rename_tag(struct rewrite *w, const char *from, const char *to)
{
    size_t n = strlen(from), size = 0;
    char *out = NULL;
    const char *p = w->prompt, *q;
    FILE *f = open_memstream(&out, &size);
    if (!f)
        return err_nomem(w->err, strlen(p));
    while ((q = strstr(p, "<lora:"))) {
        q += 6;
        fwrite(p, 1, (size_t)(q - p), f);
        bool this = !strncmp(q, from, n) && (q[n] == ':' || q[n] == '>');
        fputs(this ? to : "", f);
        p = this ? q + n : q;
    }
    fputs(p, f);
    fclose(f);
    free(w->prompt);
    w->prompt = out;
    return 0;
}

static int miss(struct rewrite *w, const char *name)
{
    char *all = NULL;
    if (asprintf(&all, "%s%s%s", w->missing ? w->missing : "", w->missing ? ", " : "", name) < 0)
        return err_nomem(w->err, strlen(name));
    free(w->missing);
    w->missing = all;
    return 0;
}

/* By its hash under whatever name it has here, else by its name. */
static int each(void *user, const char *name, const char *hash)
{
    struct rewrite *w = user;
    struct repo_adapter a = {0};
    int rc = 1;
    if (w->r->repo && strlen(hash) >= 6)
        rc = repo_find(w->r->repo, hash, &a, w->err);
    if (rc == 0 && !a.missing) {
        rc = strcmp(a.name, name) ? rename_tag(w, name, a.name) : 0;
    } else if (rc >= 0 || rc == ERR_MISMATCH) {
        repo_adapter_release(&a);
        rc = w->r->repo ? repo_find_name(w->r->repo, name, &a, w->err) : 1;
        rc = rc == 0 && !a.missing ? 0 : rc < 0 && rc != ERR_MISMATCH ? rc : miss(w, name);
    }
    repo_adapter_release(&a);
    return rc;
}

/* ---- settings -------------------------------------------------------------------------------- */

/* "DPM++ 2M Karras" or, later, "DPM++ 2M" with "Schedule type: Karras". */
static int take_sampler(struct request *r, const struct infotext *t, struct err *err)
{
    const char *name = infotext_get(t, "Sampler"), *type = infotext_get(t, "Schedule type");
    size_t n = name ? strlen(name) : 0;
    bool karras = type && !strcmp(type, "Karras");
    if (!name)
        return 0;
    if (n > 7 && !strcmp(name + n - 7, " Karras")) {
        karras = true;
        n -= 7;
    }
    const char *ours = request_sampler_of(name, n);
    if (!ours)
        return err_set(err, ERR_UNSUPPORTED,
                       "made with the sampler '%.60s', which weft has not; "
                       "--sampler chooses another",
                       name);
    int rc = request_set(&r->sampler, ours, err);
    return rc < 0 ? rc : request_set(&r->schedule, karras ? "karras" : "default", err);
}

static int number(const struct infotext *t, const char *key, double low, double high, double *out,
                  struct err *err)
{
    const char *s = infotext_get(t, key);
    char *end;
    if (!s)
        return 0;
    double v = strtod(s, &end);
    if (end == s || *end || !(v >= low && v <= high))
        return err_set(err, ERR_FORMAT, "its %s is '%.40s'", key, s);
    *out = v;
    return 1;
}

static int take_numbers(struct request *r, const struct infotext *t, struct err *err)
{
    const char *seed = infotext_get(t, "Seed"), *size = infotext_get(t, "Size");
    double steps = r->steps, skip = r->clip_skip;
    char *end = NULL;
    int rc = number(t, "Steps", 1, 1000, &steps, err);
    rc = rc < 0 ? rc : number(t, "CFG scale", 0, 1000, &r->cfg, err);
    rc = rc < 0 ? rc : number(t, "Clip skip", 1, 100, &skip, err);
    if (rc < 0)
        return rc;
    r->steps = (int)steps;
    r->clip_skip = (int)skip;
    if (seed) {
        r->seed = strtoull(seed, &end, 10);
        if (end == seed || *end || *seed == '-')
            return err_set(err, ERR_FORMAT, "its Seed is '%.40s'", seed);
    }
    if (size && sscanf(size, "%dx%d", &r->size[0], &r->size[1]) != 2)
        return err_set(err, ERR_FORMAT, "its Size is '%.40s'", size);
    return 0;
}

/* What was said of the picture and does not come through. */
static int take_note(char **note, const struct infotext *t, struct err *err)
{
    static const char *const known[] = {
        "Steps", "Sampler", "Schedule type", "CFG scale", "Seed",      "Size",      "Clip skip",
        "RNG",   "Version", "Lora hashes",   "Hashes",    "TI hashes", "Model hash"};
    char *text = NULL;
    size_t size = 0;
    int n = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return err_nomem(err, 64);
    for (int i = 0; i < t->n; i++) {
        bool ours = false;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            ours = ours || !strcmp(t->pair[i].key, known[k]);
        if (!ours)
            fprintf(f, "%s%s: %.60s", n++ ? ", " : "", t->pair[i].key, t->pair[i].value);
    }
    fclose(f);
    if (!n) {
        free(text);
        text = NULL;
    }
    *note = text;
    return 0;
}

int request_from_parameters(struct request *r, const char *text, char **note, struct err *err)
{
    struct infotext t;
    struct rewrite w = {.r = r, .err = err};
    const char *rng;
    *note = NULL;
    int rc = infotext_parse(&t, text, err);
    if (rc < 0)
        return rc;
    if (t.n < 3) {
        infotext_release(&t);
        return err_set(err, ERR_FORMAT, "its parameters hold no settings");
    }
    w.prompt = strdup(t.prompt);
    rc = w.prompt ? infotext_adapters(&t, each, &w) : err_nomem(err, strlen(t.prompt));
    if (rc == 0 && w.missing)
        rc = err_set(err, ERR_MISMATCH, "made with adapters that are not in the repository: %.400s",
                     w.missing);
    rc = rc < 0 ? rc : take_numbers(r, &t, err);
    rc = rc < 0 ? rc : take_sampler(r, &t, err);
    rc = rc < 0 ? rc : request_set(&r->prompt, w.prompt, err);
    rc = rc < 0 ? rc : request_set(&r->negative, t.negative, err);
    /* A1111 draws noise on the GPU unless told otherwise: that is Philox */
    rng = infotext_get(&t, "RNG");
    rc = rc < 0 ? rc : request_set(&r->rng, rng && !strcmp(rng, "CPU") ? "torch" : "philox", err);
    rc = rc < 0 ? rc : take_note(note, &t, err);
    free(w.prompt);
    free(w.missing);
    infotext_release(&t);
    return rc;
}

/* ---- writing ----------------------------------------------------------------------------------- */

/* Names in A1111's menus. */
static const char *const a1111_samplers[][2] = {
    {"ddim", "DDIM"}, {"pndm", "PLMS"},         {"euler", "Euler"}, {"euler_a", "Euler a"},
    {"heun", "Heun"}, {"dpmpp_2m", "DPM++ 2M"}, {"unipc", "UniPC"}, {"lcm", "LCM"}};
#define N_A1111 (sizeof a1111_samplers / sizeof *a1111_samplers)

static const char *a1111_sampler(const char *name)
{
    for (size_t i = 0; i < N_A1111; i++)
        if (!strcmp(name, a1111_samplers[i][0]))
            return a1111_samplers[i][1];
    return name;
}

const char *request_sampler_of(const char *a1111, size_t len)
{
    for (size_t i = 0; i < N_A1111; i++)
        if (strlen(a1111_samplers[i][1]) == len && !memcmp(a1111, a1111_samplers[i][1], len))
            return a1111_samplers[i][0];
    return NULL;
}

/* A value as A1111 writes it: in JSON's quotes where it holds a sign that ends values. */
static void put_value(FILE *f, const char *text)
{
    json_t *s = strpbrk(text, ",:\"\n") ? json_string(text) : NULL;
    char *quoted = s ? json_dumps(s, JSON_ENCODE_ANY) : NULL;
    fputs(quoted ? quoted : text, f);
    free(quoted);
    json_decref(s);
}

/* The prompt, with a tag for each adapter it does not name itself. */
static void put_prompt(FILE *f, const struct request *r)
{
    fputs(r->prompt, f);
    for (int i = 0; i < r->n_adapter; i++) {
        const struct request_adapter *a = &r->adapter[i];
        char *name = a->in_prompt ? NULL : a->name ? strdup(a->name) : file_stem(a->path);
        if (!name)
            continue;
        fprintf(f, " <lora:%s:%g", name, a->te);
        if (a->unet != a->te)
            fprintf(f, ":%g", a->unet);
        fputc('>', f);
        free(name);
    }
    if (r->negative && *r->negative)
        fprintf(f, "\nNegative prompt: %s", r->negative);
}

/* ", KEY: " and the list that m was opened for. */
static void put_list(FILE *f, const char *key, FILE *m, char **list)
{
    fclose(m);
    fprintf(f, ", %s: ", key);
    put_value(f, *list);
    free(*list);
}

static void put_hashes(FILE *f, const struct request *r)
{
    char *list = NULL;
    size_t size = 0;
    FILE *m = r->n_adapter ? open_memstream(&list, &size) : NULL;
    for (int i = 0; i < r->n_adapter && m; i++) {
        const struct request_adapter *a = &r->adapter[i];
        char *name = a->name ? strdup(a->name) : file_stem(a->path);
        fprintf(m, "%s%s: %.12s", i ? ", " : "", name ? name : "", r->adapter[i].sha256);
        free(name);
    }
    if (m)
        put_list(f, "Lora hashes", m, &list);
    m = r->n_embedding ? open_memstream(&list, &size) : NULL;
    for (int i = 0; i < r->n_embedding && m; i++) {
        char *name = file_stem(r->embedding[i].path);
        fprintf(m, "%s%s: %.12s", i ? ", " : "",
                r->embedding[i].name ? r->embedding[i].name
                : name               ? name
                                     : "",
                r->embedding[i].sha256);
        free(name);
    }
    if (m)
        put_list(f, "TI hashes", m, &list);
}

char *request_to_parameters(const struct request *r, const char *model_name,
                            const char *sampler_name, struct err *err)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) {
        err_nomem(err, 1024);
        return NULL;
    }
    put_prompt(f, r);
    fprintf(f, "\nSteps: %d, Sampler: %s", r->steps, a1111_sampler(sampler_name));
    if (r->schedule && !strcmp(r->schedule, "karras"))
        fputs(", Schedule type: Karras", f);
    fprintf(f, ", CFG scale: %g, Seed: %llu, Size: %dx%d, Model: ", r->cfg,
            (unsigned long long)r->seed, r->size[0], r->size[1]);
    put_value(f, model_name);
    if (r->init)
        fprintf(f, ", Denoising strength: %g", r->denoise);
    if (r->clip_skip > 1)
        fprintf(f, ", Clip skip: %d", r->clip_skip);
    fprintf(f, ", RNG: %s", r->rng && !strcmp(r->rng, "philox") ? "NV" : "CPU");
    put_hashes(f, r);
    fprintf(f, ", Version: weft " WEFT_VERSION);
    if (fclose(f)) {
        free(text);
        err_nomem(err, size);
        return NULL;
    }
    return text;
}
