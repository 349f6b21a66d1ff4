#include "adapter_places.h"
#include "adapter_words.h"
#include "auto.h"

#include "embeddings.h"

#include "compose/compose.h"
#include "retrieve/find.h"
#include "store/format.h"
#include "unet/file.h"
#include "unet/gates.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- loading --------------------------------------------------------------------------------- */

static int open_model(struct making *m, struct err *err)
{
    int rc = request_model(&m->r, err);
    char *demo = rc < 0 || m->r.model || m->model ? NULL : cli_asset("model");
    rc = rc < 0 || m->model ? rc
         : m->r.model || demo
             ? model_open(&m->model, m->dev, demo ? demo : m->r.model, err)
             : err_set(err, ERR_IO,
                       "the demo model is not installed; name a model with --model DIR");
    if (rc == 0 && *m->r.model_sha256 && strcmp(m->r.model_sha256, m->model->fingerprint))
        rc = err_set(err, ERR_MISMATCH,
                     "%s: not the model that %s was made with; --model DIR says which to use",
                     m->model->dir, m->like);
    if (rc == 0)
        memcpy(m->r.model_sha256, m->model->fingerprint, sizeof m->r.model_sha256);
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
static void tell_misfits(const struct making *m, const char *name, struct bind_report *report)
{
    int most = m->verbose ? report->n : 12;
    for (int i = 0; i < report->n && i < most; i++) {
        err_printable(report->line[i]);
        fprintf(stderr, "%s: not matched: %s\n", name, report->line[i]);
    }
    if (report->n > most)
        fprintf(stderr, "%s: and %d more; -v lists them\n", name, report->n - most);
}

static int bind_adapter(struct making *m, int i, struct err *err)
{
    struct request_adapter *ra = &m->r.adapter[i];
    struct bind_report report = {0};
    int rc = request_check_adapter(&m->r, ra, err);
    if (rc == 0)
        rc = m->pool ? adapter_file_read(&m->file[i], ra->path, err)
                     : adapter_file_open(&m->file[i], ra->path, err);
    if (rc < 0)
        return rc;
    struct adapter_file *f = m->file[i];
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
    rc = adapter_bind(&m->adapter[i], m->dev, &m->model->sites, &f->list, name, m->r.fold, &report,
                      err);
    if (rc < 0)
        err_prefix(err, "%s", ra->path);
    if (rc == 0)
        tell_misfits(m, name, &report);
    if (rc == 0 && report.n && !m->allow_partial)
        rc = err_set(err, ERR_MISMATCH,
                     "%s: %d of its %d weights do not fit this model (listed above); "
                     "--allow-partial uses the others",
                     ra->path, report.n, f->list.n);
    if (rc == 0 && (rc = adapter_weigh(m->adapter[i], &m->model->sites, &ra->blocks, err)) < 0)
        err_prefix(err, "-a %.80s", ra->ref);
    if (rc == 0 && m->verbose)
        tell_adapter(name, f, m->adapter[i]);
    bind_report_release(&report);
    return rc;
}

/* By what a pool tells bound adapters apart. */
static void pool_key(char *key, size_t size, const struct making *m,
                     const struct request_adapter *a)
{
    char blocks[HASH_HEX] = "";
    struct err none;
    if (a->blocks.n)
        hash_bytes(blocks, a->blocks.w, (size_t)a->blocks.n * sizeof *a->blocks.w, &none);
    snprintf(key, size, "%s %d %d %s", a->sha256, m->r.fold, m->allow_partial, blocks);
}

/* From the pool, or into it. */
static int lend_adapter(struct making *m, int i, struct err *err)
{
    const struct request_adapter *a = &m->r.adapter[i];
    char key[2 * HASH_HEX + 40];
    struct stat st;
    pool_key(key, sizeof key, m, a);
    if (*a->sha256 && pool_find(m->pool, key, &m->file[i], &m->adapter[i]))
        return 0;
    /* its bytes, and its factors as float32 where they are of 16 bits */
    if (stat(a->path, &st) == 0 && !pool_room(m->pool, 3 * (size_t)st.st_size))
        return err_set(err, ERR_NOMEM,
                       "%s: no room for it beside the adapters in hand; --adapter-memory gives "
                       "more",
                       a->path);
    int rc = bind_adapter(m, i, err);
    pool_key(key, sizeof key, m, a);
    if (rc < 0) {
        adapter_free(m->adapter[i]);
        adapter_file_close(m->file[i]);
    } else {
        rc = pool_add(m->pool, key, m->file[i], m->adapter[i], err);
    }
    if (rc < 0) {
        m->adapter[i] = NULL;
        m->file[i] = NULL;
    }
    return rc;
}

static int open_adapter(struct making *m, int i, struct err *err)
{
    const struct adapter_file *f;
    int rc = m->pool ? lend_adapter(m, i, err) : bind_adapter(m, i, err);
    f = m->file[i];
    if (rc == 0)
        m->use[i] = (struct use){.adapter = m->adapter[i], .high = NAN};
    if (rc == 0 && m->repo)
        rc = repo_profile(m->repo, f->data_sha256, m->model->fingerprint, &m->use[i].high, err);
    return rc < 0 ? rc : 0;
}

static int open_adapters(struct making *m, struct err *err)
{
    size_t n = (size_t)m->r.n_adapter + 1;
    m->file = calloc(n, sizeof *m->file);
    m->adapter = calloc(n, sizeof *m->adapter);
    m->use = calloc(n, sizeof *m->use);
    int rc = m->file && m->adapter && m->use ? 0 : err_nomem(err, n * sizeof *m->use);
    for (int i = 0; i < m->r.n_adapter && rc == 0; i++)
        rc = open_adapter(m, i, err);
    return rc;
}

/* What the strategies in hand want to have. */
static void look_at_strategies(const struct making *m, bool *weighs, bool *words, bool *gates)
{
    *weighs = *words = *gates = false;
    const char *const *name = m->given.compose.item;
    for (int i = -1; i < m->given.compose.n; i++) {
        const char *text = i < 0 ? m->r.compose : name[i];
        struct compose *c = NULL;
        struct err none;
        if (text && compose_open(&c, text, &none) == 0) {
            *weighs = *weighs || c->strategy->weighs;
            *words = *words || c->strategy->words;
            *gates = *gates || c->strategy->gates;
        }
        compose_close(c);
    }
}

/* --gates, or those that came with the demo model. */
static int open_gates(struct making *m, struct err *err)
{
    char *folder = m->gates_file ? NULL : cli_asset("gates"), *shipped = NULL;
    if (folder)
        shipped = file_join(folder, "gates.safetensors");
    const char *file = m->gates_file ? m->gates_file : shipped;
    int rc = file ? gates_open(&m->gates, m->dev, &m->model->sites, file, err) : ERR_MISMATCH;
    bool others = rc == 0 && strcmp(m->gates->model, m->model->fingerprint);
    if (!m->gates_file && rc != ERR_NOMEM && (rc < 0 || others)) {
        gates_close(m->gates);
        m->gates = NULL;
        rc = err_set(err, ERR_ARG,
                     "gated and router need gates that were learnt for this model: --gates FILE; "
                     "assets/train/gates.py learns them");
    }
    free(folder);
    free(shipped);
    return rc;
}

/* Prompt and negative prompt, and the adapters that the prompt names. */
static int read_prompts(struct making *m, struct err *err)
{
    bool changed = false;
    int rc = prompt_read(&m->prompt, m->r.prompt, err);
    rc = rc < 0 ? rc : prompt_read_negative(&m->negative, m->r.negative, err);
    for (size_t i = 0; i < m->prompt.n_adapter && rc == 0 && !m->named; i++) {
        const struct prompt_adapter *a = &m->prompt.adapter[i];
        rc = request_add_named(&m->r, a->name, a->te, a->unet, err);
    }
    if (rc == 0 && (m->triggers || !m->hush))
        rc = request_triggers(&m->r, &m->prompt, m->triggers, &changed, err);
    if (rc == 0 && changed) {
        prompt_release(&m->prompt);
        rc = prompt_read(&m->prompt, m->r.prompt, err);
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
static int check_init(struct making *m, struct err *err)
{
    char sha[HASH_HEX];
    int rc = hash_file(sha, m->r.init, err);
    if (rc == 0 && *m->r.init_sha256 && strcmp(sha, m->r.init_sha256))
        rc = err_set(err, ERR_MISMATCH,
                     "%s: not the file that %s began with; --init IMAGE says what to begin with",
                     m->r.init, m->like);
    memcpy(m->r.init_sha256, sha, sizeof sha);
    return rc;
}

/* The picture to start from, brought to --size if one was given. */
static int read_init(struct making *m, struct err *err)
{
    struct image im = {0};
    int f = m->model->vae->factor;
    int rc = image_read_png(m->r.init, &im, NULL, err);
    rc = rc < 0 ? rc : check_init(m, err);
    if (rc < 0) {
        image_release(&im);
        return rc;
    }
    if (!m->r.size[0]) {
        m->r.size[0] = im.w;
        m->r.size[1] = im.h;
    }
    if (im.w == m->r.size[0] && im.h == m->r.size[1]) {
        m->init = im;
        if (im.w % f || im.h % f)
            rc = err_set(err, ERR_ARG,
                         "%s: its sides %d and %d are no multiples of %d; --size %dx%d "
                         "scales it",
                         m->r.init, im.w, im.h, f, nearest_side(im.w, f), nearest_side(im.h, f));
        return rc;
    }
    rc = image_resize(&m->init, &im, m->r.size[0], m->r.size[1], IMAGE_LANCZOS, err);
    image_release(&im);
    return rc;
}

int making_model(struct making *m, struct err *err)
{
    bool open = m->dev != NULL;
    int rc = open ? 0 : device_choose(&m->dev, &m->on, err);
    if (rc == 0 && !open && m->verbose)
        fprintf(stderr, "device %s: %s\n", m->dev->be->name, m->dev->about);
    rc = rc < 0 ? rc : open_model(m, err);
    return rc < 0 || m->g ? rc : generator_open(&m->g, m->model, err);
}

bool making_gates(struct making *m)
{
    struct err none;
    return m->gates || open_gates(m, &none) == 0;
}

/* tests/eval/compose-test.csv: of two adapters, one pass through gates shows both more often than superpose with two. */
const char *making_best(struct making *m)
{
    return m->gates_file || making_gates(m) ? "gated:uncond=base" : "superpose:uncond=base";
}

int making_settle(struct making *m, struct err *err)
{
    int rc = m->choose ? making_model(m, err) : 0;
    rc = rc < 0 || !m->choose ? rc : auto_choose(m, err);
    rc = rc < 0 ? rc : read_prompts(m, err);
    rc = rc < 0 ? rc : making_model(m, err);
    return rc < 0 || !m->r.init ? rc : read_init(m, err);
}

int making_load(struct making *m, struct err *err)
{
    int rc = making_settle(m, err);
    rc = rc < 0 ? rc : open_adapters(m, err);
    rc = rc < 0 ? rc : adapter_places_read(m, err);
    bool weighs, words, gates;
    look_at_strategies(m, &weighs, &words, &gates);
    if (rc == 0 && weighs)
        rc = adapter_words_weigh(m, err);
    if (rc == 0 && words)
        rc = adapter_words_read(m, err);
    if (rc == 0 && gates && !m->gates)
        rc = open_gates(m, err);
    return rc < 0 ? rc : embeddings_open(&m->words, &m->r, m->model, m->file, m->verbose, err);
}

/* ---- one picture ----------------------------------------------------------------------------- */

int making_picture(struct making *m, struct picture *p, struct err *err)
{
    const char *s = m->r.schedule, *rng = m->r.rng;
    int rc = 0;
    picture_init(p, m->model);
    for (int i = 0; m->use && i < m->r.n_adapter; i++) {
        const struct request_adapter *a = &m->r.adapter[i];
        m->use[i].unet = (float)a->unet;
        m->use[i].te = (float)a->te;
        m->use[i].from = a->from;
        m->use[i].to = a->to;
    }
    if (!m->r.size[0]) {
        m->r.size[0] = p->w;
        m->r.size[1] = p->h;
    }
    p->prompt = &m->prompt;
    p->negative = &m->negative;
    p->words = m->words;
    p->w = m->r.size[0];
    p->h = m->r.size[1];
    p->steps = m->r.steps;
    p->cfg = m->r.cfg;
    p->sampler = m->r.sampler;
    p->eta = m->r.eta;
    p->seed = m->r.seed;
    p->clip_skip = m->r.clip_skip;
    p->tile = m->r.tile;
    p->init = m->r.init ? &m->init : NULL;
    p->denoise = m->r.denoise;
    p->use = m->use;
    p->n_use = m->use ? m->r.n_adapter : 0;
    p->compose = m->r.compose;
    p->fold = m->r.fold;
    p->gates = m->gates;
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
static int announce(const struct making *m, int n_picture, struct err *err)
{
    char need[32], have[32], weights[32];
    double bytes = (double)m->cost.bytes + (double)m->cost.weights;
    double room = (double)cli_memory_free();
    if (room > 0 && bytes > room)
        return err_set(err, ERR_NOMEM,
                       "this needs %s and %s are free: make --size smaller, or --tile 64, or close "
                       "something",
                       human_bytes(need, sizeof need, bytes), human_bytes(have, sizeof have, room));
    if (n_picture && (m->verbose || isatty(STDERR_FILENO)))
        fprintf(stderr,
                "%d picture%s of %d passes of the UNet, about %.1f s each, %s and %s of weights\n",
                n_picture, n_picture == 1 ? "" : "s", m->cost.passes,
                m->cost.flops / measure_rate(m->dev),
                human_bytes(need, sizeof need, (double)m->cost.bytes),
                human_bytes(weights, sizeof weights, (double)m->cost.weights));
    return 0;
}

int making_room(struct making *m, const struct cost *cost, struct err *err)
{
    m->cost = *cost;
    return announce(m, 0, err);
}

int making_plan(struct making *m, const struct picture *p, int n_picture, struct err *err)
{
    int rc = generator_prepare(m->g, p, 1, &m->cost, err);
    rc = rc < 0 ? rc : embeddings_settle(m->words, &m->r, n_picture == 0, err);
    return rc < 0 ? rc : announce(m, n_picture, err);
}

static int on_progress(void *user, int done, int total)
{
    progress_show(user, done, total);
    return cli_stopped();
}

/* So many rows at once fill a processor, where one picture of so few latent places is too small to: 16 of the
 * demo model's take 6 % less time four at once. Larger ones gain nothing and would take the memory. */
enum { HAND_PLACES = 32 * 32 };

int making_rows(const struct making *m, const struct picture *p)
{
    int f = m->model->vae->factor, rows = m->cost.passes / (p->steps > 0 ? p->steps : 1);
    if ((p->w / f) * (p->h / f) > HAND_PLACES || rows < 1 || rows > HAND_ROWS)
        return HAND_ROWS;
    return rows;
}

int making_hand(const struct making *m, const struct picture *p)
{
    return HAND_ROWS / making_rows(m, p);
}

int making_run(struct making *m, const struct picture *p, int n, struct image *im, struct err *err)
{
    struct progress bar;
    int rc = generator_prepare(m->g, p, n, &m->cost, err);
    progress_start(&bar);
    rc = rc < 0 ? rc : generator_run(m->g, im, on_progress, &bar, err);
    progress_end(&bar);
    return rc == 0 && cli_stopped() ? err_set(err, ERR_STOPPED, "stopped") : rc;
}

int making_can_write(const struct making *m, const char *path, struct err *err)
{
    struct stat to, from;
    int rc = 0;
    if (m->r.init && stat(path, &to) == 0 && stat(m->r.init, &from) == 0 &&
        to.st_dev == from.st_dev && to.st_ino == from.st_ino)
        rc = err_set(err, ERR_ARG, "%s: --init would be replaced by what is made from it", path);
    return rc < 0 ? rc : file_can_replace(path, err);
}

int making_write(const struct making *m, const char *path, const struct image *im, struct err *err)
{
    const char *sampler = m->r.sampler ? m->r.sampler : m->model->schedule.sampler;
    char *name = file_stem(m->model->dir);
    char *params = name ? request_to_parameters(&m->r, name, sampler, err) : NULL;
    char *json = params ? request_to_json(&m->r, err) : NULL;
    char keys[2][16] = {"parameters", "weft"};
    struct image_text text[] = {{keys[0], params}, {keys[1], json}};
    int rc = json ? image_write_png(path, im, text, 2, err) : name ? err->code : err_nomem(err, 64);
    free(name);
    free(params);
    free(json);
    return rc;
}

void making_forget(struct making *m)
{
    auto_release(m);
    if (!m->lent)
        generator_forget(m->g);
    for (int i = 0; i < m->r.n_adapter; i++) {
        if (m->use && m->pool) {
            pool_give(m->pool, m->adapter[i]);
        } else if (m->use) {
            adapter_free(m->adapter[i]);
            adapter_file_close(m->file[i]);
        }
        free(m->word ? m->word[i] : NULL);
        free(m->where ? m->where[i] : NULL);
    }
    free(m->word);
    free(m->where);
    free(m->adapter);
    free(m->file);
    free(m->use);
    words_free(m->words);
    prompt_release(&m->prompt);
    prompt_release(&m->negative);
    image_release(&m->init);
    request_release(&m->r);
    m->word = NULL;
    m->where = NULL;
    m->adapter = NULL;
    m->file = NULL;
    m->use = NULL;
    m->words = NULL;
}

void making_close_model(struct making *m)
{
    generator_close(m->g);
    gates_close(m->gates);
    model_close(m->model);
    m->g = NULL;
    m->gates = NULL;
    m->model = NULL;
    *m->r.model_sha256 = 0;
}

void making_release(struct making *m)
{
    making_forget(m);
    free(m->given.adapter.item);
    free(m->given.embedding.item);
    free(m->given.compose.item);
    if (m->lent)
        return;
    making_close_model(m);
    device_close(m->dev);
    repo_close(m->repo);
}

int making_finder(const struct making *m, struct finder **f, struct err *err)
{
    char *retriever = cli_asset("retriever"), *scorer = cli_asset("scorer");
    int rc = finder_open(f, m->repo, m->model, retriever, scorer, err);
    free(retriever);
    free(scorer);
    return rc;
}
