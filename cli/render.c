/* weft render: a prompt becomes a picture. */
#include "cli.h"
#include "embeddings.h"
#include "request.h"

#include "compose/generate.h"
#include "store/adapter.h"
#include "store/format.h"
#include "unet/file.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Everything one call of the command holds; released whole at the end. */
struct render {
    struct request r;
    struct repo *repo; /* NULL: there is none */
    struct device *dev;
    struct model *model;
    struct adapter_file **file; /* [r.n_adapter] */
    struct adapter **adapter;
    struct use *use;
    struct generator *g;
    struct prompt prompt, negative;
    struct words *words;
    struct image init;
    struct cost cost;

    /* of this call, not of the picture */
    const char *out, *like, *device, *isa, *home;
    int count, threads;
    bool json, verbose, allow_partial, triggers;
    bool named; /* r has the adapters that the prompt names */
};

/* ---- options --------------------------------------------------------------------------------- */

/* Options as given, before they are laid over the settings of --like. */
struct given {
    const char *prompt, *negative, *model, *sampler, *schedule, *rng, *init;
    struct option_list adapter, embedding, compose;
    uint64_t seed;
    int size[2], steps, clip_skip, tile;
    double cfg, eta, denoise;
    bool fold, has_seed, has_steps, has_clip_skip, has_tile, has_cfg, has_eta, has_denoise;
};

#define MAX_OPTIONS 40

/* The one table of options, filled into o. */
static void make_options(struct option o[MAX_OPTIONS], struct given *g, struct render *d)
{
    const struct option table[] = {
        {.kind = OPTION_GROUP, .name = "", .help = "What to make:"},
        {"adapter", 'a', OPTION_LIST, &g->adapter, "REF[:STRENGTH]",
         "an adapter: a name, alias, id or hash of the repository, or a\n"
         "file; at its preferred strength, or 1; may be repeated.\n"
         "Then ,key=value: unet= te= strengths apart, from= to= the steps\nit acts in, "
         "blocks=1/0.5/… 17 or 26 strengths as A1111's block\nweights order them",
         0, 0, NULL},
        {"triggers", 0, OPTION_FLAG, &d->triggers, NULL,
         "put the trigger words of adapters in front of the prompt where\nthey are missing", 0, 0,
         NULL},
        {"embedding", 0, OPTION_LIST, &g->embedding, "FILE[=NAME]",
         "a textual inversion, which prompts use by its name; may be repeated", 0, 0, NULL},
        {"negative", 'n', OPTION_TEXT, &g->negative, "TEXT", "what to keep out", 0, 0, NULL},
        {"model", 'm', OPTION_TEXT, &g->model, "DIR",
         "a model in diffusers' layout, or the name of a registered one;\n"
         "default: the only registered one, else the demo model",
         0, 0, NULL},
        {"size", 's', OPTION_SIZE, g->size, "WxH", "pixels; default: the model's own", 0, 0, NULL},
        {"seed", 0, OPTION_U64, &g->seed, "N",
         "the same seed makes the same picture; default: a new one each\ntime, which is printed", 0,
         0, &g->has_seed},
        {"count", 'c', OPTION_INT, &d->count, "N", "so many pictures, with seeds from --seed up", 1,
         100000, NULL},
        {"init", 0, OPTION_TEXT, &g->init, "IMAGE", "start from this PNG instead of noise", 0, 0,
         NULL},
        {"denoise", 0, OPTION_NUMBER, &g->denoise, "X",
         "with --init: how much is made anew, above 0, up to 1; default 0.6", 0, 0,
         &g->has_denoise},
        {"like", 0, OPTION_TEXT, &d->like, "IMAGE",
         "all settings from a picture that weft made; options given\nbeside it are laid over them, "
         "and "
         "a new prompt names its adapters anew",
         0, 0, NULL},
        {.kind = OPTION_GROUP, .name = "", .help = "How:"},
        {"steps", 0, OPTION_INT, &g->steps, "N", "default 30", 0, 0, &g->has_steps},
        {"cfg", 0, OPTION_NUMBER, &g->cfg, "X",
         "how strongly the prompt guides; 1: not beyond itself, and one\npass a step; default 7", 0,
         0, &g->has_cfg},
        {"sampler", 0, OPTION_TEXT, &g->sampler, "NAME", "default: the model's own; see below", 0,
         0, NULL},
        {"schedule", 0, OPTION_TEXT, &g->schedule, "NAME",
         "default (the model's), karras or trained", 0, 0, NULL},
        {"eta", 0, OPTION_NUMBER, &g->eta, "0..1", "ddim: fresh noise a step; default 0", 0, 0,
         &g->has_eta},
        {"compose", 0, OPTION_LIST, &g->compose, "NAME",
         "how several adapters share the picture: merge", 0, 0, NULL},
        {"fold", 0, OPTION_FLAG, &g->fold, NULL,
         "add the adapters to a copy of the weights instead of running\nthem beside: more memory, "
         "fewer operations a step",
         0, 0, NULL},
        {"clip-skip", 0, OPTION_INT, &g->clip_skip, "N",
         "2: leave out the text encoder's last block; default 1", 0, 0, &g->has_clip_skip},
        {"rng", 0, OPTION_TEXT, &g->rng, "NAME",
         "torch (as torch.randn on a CPU, the default) or philox (as on\nCUDA)", 0, 0, NULL},
        {"tile", 0, OPTION_INT, &g->tile, "N",
         "decode in squares of N latent places: less memory, nearly the\nsame pixels", 0, 0,
         &g->has_tile},
        {.kind = OPTION_GROUP, .name = "", .help = "And:"},
        {"output", 'o', OPTION_TEXT, &d->out, "FILE",
         "default weft-SEED.png; or a folder; with --count the seed is put\nbefore .png", 0, 0,
         NULL},
        {"allow-partial", 0, OPTION_FLAG, &d->allow_partial, NULL,
         "go on when an adapter fits the model only in part", 0, 0, NULL},
        {"home", 0, OPTION_TEXT, &d->home, "DIR", "the repository; see weft help add", 0, 0, NULL},
        {"threads", 't', OPTION_INT, &d->threads, "N", "default: all processors", 1, 1024, NULL},
        {"device", 0, OPTION_TEXT, &d->device, "NAME", "cpu, or ref (slow, the reference)", 0, 0,
         NULL},
        {"isa", 0, OPTION_TEXT, &d->isa, "NAME", "hold our own kernels to avx512, avx2 or plain", 0,
         0, NULL},
        {"json", 0, OPTION_FLAG, &d->json, NULL, "one JSON object a picture on stdout", 0, 0, NULL},
        {"verbose", 'v', OPTION_FLAG, &d->verbose, NULL, "what was loaded and what matched", 0, 0,
         NULL},
        {.name = NULL},
    };
    static_assert(sizeof table / sizeof *table <= MAX_OPTIONS, "more options than room");
    memcpy(o, table, sizeof table);
}

static void help(void)
{
    struct given g;
    struct render d;
    struct option o[MAX_OPTIONS];
    make_options(o, &g, &d);
    options_help(o);
    puts("\nSamplers (* takes --schedule karras):");
    for (int i = 0; sampler_names[i]; i++)
        printf("  %c %-10s%s\n", sampler_takes_karras(sampler_names[i]) ? '*' : ' ',
               sampler_names[i], sampler_about(sampler_names[i]));
    puts("\nIn a prompt, as in AUTOMATIC1111's web UI:\n"
         "  (word) (word:1.2) [word]     more, this much, less        \\( \\) plain brackets\n"
         "  BREAK                        a new chunk of tokens\n"
         "  [a:b:0.5] [b:3] [a::3]       the text changes at a fraction of the steps or a step\n"
         "  [a|b]                        it alternates\n"
         "  a AND b:0.5                  two conditions\n"
         "  <lora:NAME:0.8>              an adapter; <lora:NAME:te:unet>\n"
         "  NAME embedding:NAME          a textual inversion given with --embedding");
}

/* Lays what was given over r. */
static int apply(struct request *r, const struct given *g, struct err *err)
{
    int rc = 0;
    const struct {
        char **to;
        const char *text;
    } text[] = {{&r->prompt, g->prompt},   {&r->negative, g->negative}, {&r->model, g->model},
                {&r->sampler, g->sampler}, {&r->schedule, g->schedule}, {&r->rng, g->rng},
                {&r->init, g->init}};
    for (size_t i = 0; i < sizeof text / sizeof *text && rc == 0; i++)
        if (text[i].text)
            rc = request_set(text[i].to, text[i].text, err);
    if (g->prompt)
        request_drop_named(r);
    if (g->model)
        *r->model_sha256 = 0;
    if (g->init)
        *r->init_sha256 = 0;
    if (g->size[0])
        memcpy(r->size, g->size, sizeof r->size);
    r->seed = g->has_seed ? g->seed : r->seed;
    r->steps = g->has_steps ? g->steps : r->steps;
    r->clip_skip = g->has_clip_skip ? g->clip_skip : r->clip_skip;
    r->tile = g->has_tile ? g->tile : r->tile;
    r->cfg = g->has_cfg ? g->cfg : r->cfg;
    r->eta = g->has_eta ? g->eta : r->eta;
    r->denoise = g->has_denoise ? g->denoise : r->denoise;
    r->fold = r->fold || g->fold;
    for (int i = 0; i < g->adapter.n && rc == 0; i++)
        rc = request_add_adapter(r, g->adapter.item[i], err);
    for (int i = 0; i < g->embedding.n && rc == 0; i++)
        rc = request_add_embedding(r, g->embedding.item[i], err);
    for (int i = 0; i < g->compose.n && rc == 0; i++)
        if (strcmp(g->compose.item[i], "merge"))
            rc = err_set(err, ERR_ARG, "no strategy '%.60s'; known: merge", g->compose.item[i]);
    return rc < 0 ? rc : request_check(r, err);
}

/* The settings that a picture remembers. *ours: weft made it, and the adapters of its prompt are with it. */
static int read_like(struct request *r, const char *path, bool *ours, struct err *err)
{
    struct image im = {0};
    struct image_texts texts = {0};
    int rc = image_read_png(path, &im, &texts, err);
    if (rc == 0) {
        const char *chunk = image_text_find(&texts, "weft");
        const char *other = image_text_find(&texts, "parameters");
        char *note = NULL;
        *ours = chunk != NULL;
        rc = chunk   ? request_from_json(r, chunk, err)
             : other ? request_from_parameters(r, other, &note, err)
                     : err_set(err, ERR_FORMAT, "says nothing of how it was made");
        if (note)
            fprintf(stderr, "weft: %s: not followed: %s\n", path, note);
        free(note);
        if (rc < 0)
            err_prefix(err, "%s", path);
    }
    image_release(&im);
    image_texts_release(&texts);
    return rc;
}

/* The repository, if there is one. */
static int open_repo(struct render *d, struct err *err)
{
    char *home = repo_home(d->home);
    int rc = !home               ? err_nomem(err, 64)
             : repo_exists(home) ? repo_open(&d->repo, home, REPO_READ, err)
                                 : 0;
    free(home);
    d->r.repo = d->repo;
    return rc;
}

static uint64_t fresh_seed(void)
{
    uint32_t s = 0;
    if (getentropy(&s, sizeof s) < 0)
        s = (uint32_t)time(NULL);
    return s;
}

static int parse(struct render *d, int argc, char **argv, struct err *err)
{
    struct given g = {0};
    struct option o[MAX_OPTIONS];
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int n = 0;

    make_options(o, &g, d);
    request_init(&d->r);
    d->count = 1;
    int rc = rest ? options_parse(o, argc, argv, rest, &n, err) : err_nomem(err, 64);
    if (rc == 0 && n > 1)
        rc = err_set(err, ERR_ARG, "one prompt, please, in quotes; '%.60s' is a second", rest[1]);
    if (rc == 0 && n == 0 && !d->like)
        rc = err_set(err, ERR_ARG, "no prompt; an empty one is written \"\"");
    rc = rc < 0 ? rc : open_repo(d, err);
    if (rc == 0) {
        bool ours = true;
        g.prompt = n ? rest[0] : NULL;
        rc = d->like ? read_like(&d->r, d->like, &ours, err) : 0;
        d->named = !g.prompt && ours;
        if (!d->like && !g.has_seed)
            d->r.seed = fresh_seed();
    }
    rc = rc < 0 ? rc : apply(&d->r, &g, err);
    if (rc == 0 && !d->r.prompt)
        rc = request_set(&d->r.prompt, "", err);
    if (rc == 0 && !d->r.negative)
        rc = request_set(&d->r.negative, "", err);
    if (rc == 0 && d->r.seed > (uint64_t)INT64_MAX - (uint64_t)d->count + 1)
        rc = err_set(err, ERR_ARG, "--seed and --count: the last seed would be above 2^63 - 1");
    free(rest);
    free(g.adapter.item);
    free(g.embedding.item);
    free(g.compose.item);
    return rc;
}

/* ---- loading --------------------------------------------------------------------------------- */

static int open_device(struct render *d, struct err *err)
{
    static const char *const isa[] = {"best", "plain", "avx2", "avx512"};
    struct device_options o = {.threads = d->threads};
    int i = 0;
    while (d->isa && i < 4 && strcmp(isa[i], d->isa))
        i++;
    if (i == 4)
        return err_set(err, ERR_ARG, "no instruction set '%.40s'; known: plain, avx2, avx512",
                       d->isa);
    o.isa = (enum isa)i;
    return device_open(&d->dev, d->device ? d->device : "cpu", &o, err);
}

static int open_model(struct render *d, struct err *err)
{
    int rc = request_model(&d->r, err);
    char *demo = rc < 0 || d->r.model ? NULL : cli_asset("model");
    rc = rc < 0 ? rc
         : d->r.model || demo
             ? model_open(&d->model, d->dev, demo ? demo : d->r.model, err)
             : err_set(err, ERR_IO,
                       "the demo model is not installed; name a model with --model DIR");
    if (rc == 0 && *d->r.model_sha256 && strcmp(d->r.model_sha256, d->model->fingerprint))
        rc = err_set(err, ERR_MISMATCH,
                     "%s: not the model that %s was made with; --model DIR says which to use",
                     d->model->dir, d->like);
    if (rc == 0)
        memcpy(d->r.model_sha256, d->model->fingerprint, sizeof d->r.model_sha256);
    free(demo);
    return rc;
}

static void tell_adapter(const char *name, const struct adapter_file *f, const struct adapter *a)
{
    fprintf(stderr, "adapter %s: %s (%s), %d of %d weights matched: %d unet, %d text encoder\n",
            name, f->format->name, f->style, a->matched, f->list.n, a->matched_in[COMPONENT_UNET],
            a->matched_in[COMPONENT_TEXT]);
}

/* What did not match and why; a dozen unless all are asked for. */
static void tell_misfits(const struct render *d, const char *name, struct bind_report *report)
{
    int most = d->verbose ? report->n : 12;
    for (int i = 0; i < report->n && i < most; i++) {
        err_printable(report->line[i]);
        fprintf(stderr, "%s: not matched: %s\n", name, report->line[i]);
    }
    if (report->n > most)
        fprintf(stderr, "%s: and %d more; -v lists them\n", name, report->n - most);
}

static int open_adapter(struct render *d, int i, struct err *err)
{
    struct request_adapter *ra = &d->r.adapter[i];
    struct bind_report report = {0};
    int rc = request_check_adapter(&d->r, ra, err);
    rc = rc < 0 ? rc : adapter_file_open(&d->file[i], ra->path, err);
    if (rc < 0)
        return rc;
    struct adapter_file *f = d->file[i];
    const char *name = ra->name ? ra->name : f->name;
    if (ra->row && strcmp(ra->row->data_sha256, f->data_sha256))
        return err_set(err, ERR_MISMATCH,
                       "%s: %s is damaged (its weights are not those that were added); weft verify "
                       "tells more",
                       name, ra->path);
    if (*ra->sha256 && strcmp(ra->sha256, f->data_sha256))
        return err_set(err, ERR_MISMATCH,
                       "%s: not the file the picture was made with (its weights differ)", ra->path);
    memcpy(ra->sha256, f->data_sha256, sizeof ra->sha256);
    rc = adapter_bind(&d->adapter[i], d->dev, &d->model->sites, &f->list, name, d->r.fold, &report,
                      err);
    if (rc < 0)
        err_prefix(err, "%s", ra->path);
    if (rc == 0)
        tell_misfits(d, name, &report);
    if (rc == 0 && report.n && !d->allow_partial)
        rc = err_set(err, ERR_MISMATCH,
                     "%s: %d of its %d weights do not fit this model (listed above); "
                     "--allow-partial uses the others",
                     ra->path, report.n, f->list.n);
    if (rc == 0 && (rc = adapter_weigh(d->adapter[i], &d->model->sites, &ra->blocks, err)) < 0)
        err_prefix(err, "-a %.80s", ra->ref);
    if (rc == 0 && d->verbose)
        tell_adapter(name, f, d->adapter[i]);
    bind_report_release(&report);
    if (rc == 0)
        d->use[i] = (struct use){d->adapter[i], (float)ra->unet, (float)ra->te, ra->from, ra->to};
    return rc;
}

static int open_adapters(struct render *d, struct err *err)
{
    size_t n = (size_t)d->r.n_adapter + 1;
    d->file = calloc(n, sizeof *d->file);
    d->adapter = calloc(n, sizeof *d->adapter);
    d->use = calloc(n, sizeof *d->use);
    int rc = d->file && d->adapter && d->use ? 0 : err_nomem(err, n * sizeof *d->use);
    for (int i = 0; i < d->r.n_adapter && rc == 0; i++)
        rc = open_adapter(d, i, err);
    return rc;
}

/* Prompt and negative prompt, and the adapters that the prompt names. */
static int read_prompts(struct render *d, struct err *err)
{
    bool changed = false;
    int rc = prompt_read(&d->prompt, d->r.prompt, err);
    rc = rc < 0 ? rc : prompt_read_negative(&d->negative, d->r.negative, err);
    for (size_t i = 0; i < d->prompt.n_adapter && rc == 0 && !d->named; i++) {
        const struct prompt_adapter *a = &d->prompt.adapter[i];
        rc = request_add_named(&d->r, a->name, a->te, a->unet, err);
    }
    if (rc == 0)
        rc = request_triggers(&d->r, &d->prompt, d->triggers, &changed, err);
    if (rc == 0 && changed) {
        prompt_release(&d->prompt);
        rc = prompt_read(&d->prompt, d->r.prompt, err);
    }
    return rc;
}

/* The nearest side that the model can make. */
static int nearest_side(int side, int f)
{
    int n = (side + f / 2) / f;
    return (n > 0 ? n : 1) * f;
}

/* It must be the file that the picture of --like began with. */
static int check_init(struct render *d, struct err *err)
{
    char sha[HASH_HEX];
    int rc = hash_file(sha, d->r.init, err);
    if (rc == 0 && *d->r.init_sha256 && strcmp(sha, d->r.init_sha256))
        rc = err_set(err, ERR_MISMATCH,
                     "%s: not the file that %s began with; --init IMAGE says what to begin with",
                     d->r.init, d->like);
    memcpy(d->r.init_sha256, sha, sizeof sha);
    return rc;
}

/* The picture to start from, brought to --size if one was given. */
static int read_init(struct render *d, struct err *err)
{
    struct image im = {0};
    int f = d->model->vae->factor;
    int rc = image_read_png(d->r.init, &im, NULL, err);
    rc = rc < 0 ? rc : check_init(d, err);
    if (rc < 0) {
        image_release(&im);
        return rc;
    }
    if (!d->r.size[0]) {
        d->r.size[0] = im.w;
        d->r.size[1] = im.h;
    }
    if (im.w == d->r.size[0] && im.h == d->r.size[1]) {
        d->init = im;
        if (im.w % f || im.h % f)
            rc = err_set(err, ERR_ARG,
                         "%s: its sides %d and %d are no multiples of %d; --size %dx%d "
                         "scales it",
                         d->r.init, im.w, im.h, f, nearest_side(im.w, f), nearest_side(im.h, f));
        return rc;
    }
    rc = image_resize(&d->init, &im, d->r.size[0], d->r.size[1], IMAGE_LANCZOS, err);
    image_release(&im);
    return rc;
}

/* ---- one picture ----------------------------------------------------------------------------- */

static int to_picture(struct render *d, struct picture *p, struct err *err)
{
    const char *s = d->r.schedule, *rng = d->r.rng;
    int rc = 0;
    picture_init(p, d->model);
    if (!d->r.size[0]) {
        d->r.size[0] = p->w;
        d->r.size[1] = p->h;
    }
    p->prompt = &d->prompt;
    p->negative = &d->negative;
    p->words = d->words;
    p->w = d->r.size[0];
    p->h = d->r.size[1];
    p->steps = d->r.steps;
    p->cfg = d->r.cfg;
    p->sampler = d->r.sampler;
    p->eta = d->r.eta;
    p->seed = d->r.seed;
    p->clip_skip = d->r.clip_skip;
    p->tile = d->r.tile;
    p->init = d->r.init ? &d->init : NULL;
    p->denoise = d->r.denoise;
    if (s && !strcmp(s, "karras"))
        p->sigmas = SIGMAS_KARRAS;
    else if (s && !strcmp(s, "trained"))
        p->sigmas = SIGMAS_TRAINED;
    else if (s && strcmp(s, "default"))
        rc = err_set(err, ERR_ARG, "no schedule '%.40s'; known: default, karras, trained", s);
    if (rng && !strcmp(rng, "philox"))
        p->rng = RNG_PHILOX;
    else if (rng && strcmp(rng, "torch"))
        rc = err_set(err, ERR_ARG, "no rng '%.40s'; known: torch, philox", rng);
    return rc;
}

/* FILE for one picture; FILE with the seed before its ending for one of several. */
static char *output_path(const struct render *d, uint64_t seed)
{
    const char *out = d->out;
    char name[64], *path = NULL;
    snprintf(name, sizeof name, "weft-%llu.png", (unsigned long long)seed);
    if (!out)
        return strdup(name);
    if (file_kind(out) == 2)
        return file_join(out, name);
    if (d->count == 1)
        return strdup(out);
    const char *dot = strrchr(out, '.'), *slash = strrchr(out, '/');
    size_t stem = dot && (!slash || dot > slash) ? (size_t)(dot - out) : strlen(out);
    if (asprintf(&path, "%.*s-%llu%s", (int)stem, out, (unsigned long long)seed, out + stem) < 0)
        return NULL;
    return path;
}

static int write_picture(struct render *d, const char *path, const struct image *im,
                         struct err *err)
{
    const char *sampler = d->r.sampler ? d->r.sampler : d->model->schedule.sampler;
    char *name = file_stem(d->model->dir);
    char *params = name ? request_to_parameters(&d->r, name, sampler, err) : NULL;
    char *json = params ? request_to_json(&d->r, err) : NULL;
    char keys[2][16] = {"parameters", "weft"};
    struct image_text text[] = {{keys[0], params}, {keys[1], json}};
    int rc = json ? image_write_png(path, im, text, 2, err) : name ? err->code : err_nomem(err, 64);
    free(name);
    free(params);
    free(json);
    return rc;
}

static json_t *adapter_report(const struct render *d, int i)
{
    const struct request_adapter *a = &d->r.adapter[i];
    char id[13];
    snprintf(id, sizeof id, "%.12s", a->id ? a->id : a->sha256);
    return json_pack("{s:s, s:s, s:f, s:i, s:i}", "name", a->name ? a->name : d->file[i]->name,
                     "id", id, "strength", a->unet, "sites", d->file[i]->list.n, "matched",
                     d->adapter[i]->matched);
}

static json_t *embedding_report(const struct request_embedding *e)
{
    char id[13];
    snprintf(id, sizeof id, "%.12s", e->sha256);
    return json_pack("{s:s?, s:s, s:s}", "name", e->name, "file", e->path, "id", id);
}

static void report(const struct render *d, const char *path, double seconds)
{
    if (!d->json) {
        printf("%s  %dx%d  seed %llu  %d steps  %d passes  %.1f s\n", path, d->r.size[0],
               d->r.size[1], (unsigned long long)d->r.seed, d->r.steps, d->cost.passes, seconds);
        return;
    }
    json_t *list = json_array(),
           *root = json_pack("{s:s, s:I, s:f, s:i, s:i, s:s}", "file", path, "seed",
                             (json_int_t)d->r.seed, "seconds", seconds, "steps", d->r.steps,
                             "passes", d->cost.passes, "model", d->model->dir);
    for (int i = 0; i < d->r.n_adapter; i++)
        json_array_append_new(list, adapter_report(d, i));
    json_object_set_new(root, "adapters", list);
    list = json_array();
    for (int i = 0; i < d->r.n_embedding; i++)
        json_array_append_new(list, embedding_report(&d->r.embedding[i]));
    json_object_set_new(root, "embeddings", list);
    char *text = json_dumps(root, JSON_COMPACT);
    puts(text ? text : "{}");
    fflush(stdout);
    free(text);
    json_decref(root);
}

static int on_progress(void *user, int done, int total)
{
    progress_show(user, done, total);
    return cli_stopped();
}

static int one_picture(struct render *d, const struct picture *p, struct err *err)
{
    struct image im = {0};
    struct progress bar;
    double began = cli_now();
    char *path = output_path(d, p->seed);
    int rc = path ? generator_prepare(d->g, p, &d->cost, err) : err_nomem(err, 64);

    progress_start(&bar);
    rc = rc < 0 ? rc : generator_run(d->g, &im, on_progress, &bar, err);
    progress_end(&bar);
    if (rc == 0 && cli_stopped())
        rc = err_set(err, ERR_STOPPED, "stopped");
    rc = rc < 0 ? rc : write_picture(d, path, &im, err);
    if (rc == 0)
        report(d, path, cli_now() - began);
    image_release(&im);
    free(path);
    return rc;
}

/* ---- before the first step ------------------------------------------------------------------- */

/* GFLOP/s of a middling matrix product, measured in a few milliseconds. */
static double measure_rate(struct device *dev)
{
    enum { WIDTH = 512, ROWS = 256 };
    float *w = calloc((size_t)WIDTH * WIDTH, sizeof *w);
    struct layer l = {.name = "rate",
                      .site = -1,
                      .out = WIDTH,
                      .in = WIDTH,
                      .kh = 1,
                      .kw = 1,
                      .stride = 1,
                      .w = {.dtype = DT_F32, .ndim = 2, .dim = {WIDTH, WIDTH}, .data = w}};
    struct run r;
    double best = 1e9;
    struct err err;

    run_init(&r, dev);
    for (int i = 0; w && i < 5; i++) {
        if (i == 0)
            run_measure(&r);
        else
            run_reset(&r);
        struct tensor x = run_tensor(&r, 1, ROWS, 1, WIDTH), y = run_like(&r, &x);
        if (i == 0 && run_commit(&r, &err) < 0)
            break;
        if (i == 0)
            continue;
        op_affine(&r, &x, &x, 0, 0);
        double t = cli_now();
        op_layer(&r, &y, &l, &x, false);
        t = cli_now() - t;
        best = t < best ? t : best;
    }
    layer_release(dev, &l);
    run_release(&r);
    free(w);
    return 2.0 * ROWS * WIDTH * WIDTH / best;
}

/* What it will take, and whether there is room. */
static int announce(struct render *d, struct err *err)
{
    char need[32], have[32], weights[32];
    double bytes = (double)d->cost.bytes + (double)d->cost.weights;
    double room = (double)cli_memory_free();
    if (room > 0 && bytes > room)
        return err_set(err, ERR_NOMEM,
                       "this needs %s and %s are free: make --size smaller, or --tile 64, or close "
                       "something",
                       human_bytes(need, sizeof need, bytes), human_bytes(have, sizeof have, room));
    if (d->verbose || isatty(STDERR_FILENO))
        fprintf(stderr, "%d passes of the UNet, about %.1f s a picture, %s and %s of weights\n",
                d->cost.passes, d->cost.flops / measure_rate(d->dev),
                human_bytes(need, sizeof need, (double)d->cost.bytes),
                human_bytes(weights, sizeof weights, (double)d->cost.weights));
    return 0;
}

/* Whether the picture could be written there at the end. */
static int check_output(const struct render *d, const char *path, struct err *err)
{
    struct stat to, from;
    json_t *text = json_string(path);
    int rc = 0;
    if (!text && d->json)
        rc = err_set(err, ERR_ARG, "%s: its name is not UTF-8, as JSON is", path);
    if (d->r.init && stat(path, &to) == 0 && stat(d->r.init, &from) == 0 &&
        to.st_dev == from.st_dev && to.st_ino == from.st_ino)
        rc = err_set(err, ERR_ARG, "%s: --init would be replaced by what is made from it", path);
    json_decref(text);
    return rc < 0 ? rc : file_can_replace(path, err);
}

static int check_outputs(const struct render *d, uint64_t seed, struct err *err)
{
    char *settings = request_to_json(&d->r, err);
    int rc = settings ? 0 : err->code;
    for (int i = 0; i < d->count && rc == 0; i++) {
        char *path = output_path(d, seed + (uint64_t)i);
        rc = path ? check_output(d, path, err) : err_nomem(err, 64);
        free(path);
    }
    free(settings);
    return rc;
}

static int make_all(struct render *d, struct err *err)
{
    struct picture p;
    int rc = to_picture(d, &p, err);
    rc = rc < 0 ? rc : check_outputs(d, p.seed, err);
    rc = rc < 0 ? rc : generator_open(&d->g, d->model, d->use, d->r.n_adapter, d->r.fold, err);
    rc = rc < 0 ? rc : generator_prepare(d->g, &p, &d->cost, err);
    rc = rc < 0 ? rc : embeddings_check_used(d->words, &d->r, err);
    rc = rc < 0 ? rc : announce(d, err);
    for (int i = 0; i < d->count && rc == 0; i++) {
        d->r.seed = p.seed;
        rc = one_picture(d, &p, err);
        p.seed++;
    }
    return rc;
}

static void release(struct render *d)
{
    generator_close(d->g);
    for (int i = 0; d->use && i < d->r.n_adapter; i++) {
        adapter_free(d->adapter[i]);
        adapter_file_close(d->file[i]);
    }
    free(d->adapter);
    free(d->file);
    free(d->use);
    words_free(d->words);
    model_close(d->model);
    device_close(d->dev);
    prompt_release(&d->prompt);
    prompt_release(&d->negative);
    image_release(&d->init);
    request_release(&d->r);
    repo_close(d->repo);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct render d;
    struct err err;

    (void)self;
    memset(&d, 0, sizeof d);
    err_clear(&err);
    cli_catch_stop();
    int rc = parse(&d, argc, argv, &err);
    rc = rc < 0 ? rc : read_prompts(&d, &err);
    rc = rc < 0 ? rc : open_device(&d, &err);
    rc = rc < 0 ? rc : open_model(&d, &err);
    rc = rc < 0 ? rc : open_adapters(&d, &err);
    rc = rc < 0 ? rc : embeddings_open(&d.words, &d.r, d.model, d.file, d.verbose, &err);
    rc = rc < 0 || !d.r.init ? rc : read_init(&d, &err);
    rc = rc < 0 ? rc : make_all(&d, &err);
    release(&d);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_render = {
    .name = "render",
    .usage = "weft render PROMPT [options]",
    .about = "a prompt becomes a picture",
    .run = run,
    .help = help,
};
