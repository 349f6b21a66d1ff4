#include "making.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct option *making_options(struct option *o, struct making *m)
{
    struct given *g = &m->given;
    const struct option table[] = {
        {.kind = OPTION_GROUP, .name = "", .help = "What to make:"},
        {"adapter", 'a', OPTION_LIST, &g->adapter, "REF[:STRENGTH]",
         "an adapter: a name, alias, id or hash of the repository, or a\n"
         "file; at its preferred strength, or 1; may be repeated.\n"
         "Then ,key=value: unet= te= strengths apart, from= to= the steps\nit acts in, "
         "blocks=1/0.5/… 17 or 26 strengths as A1111's block\nweights order them, "
         "word= its words in the prompt (empty: for the whole\npicture), box=0/0/.5/1 or mask=PNG "
         "where "
         "it acts,\nprompt= what is there (regions, composer)",
         0, 0, NULL},
        {"triggers", 0, OPTION_FLAG, &m->triggers, NULL,
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
        {"init", 0, OPTION_TEXT, &g->init, "IMAGE", "start from this PNG instead of noise", 0, 0,
         NULL},
        {"denoise", 0, OPTION_NUMBER, &g->denoise, "X",
         "with --init: how much is made anew, above 0, up to 1; default 0.6", 0, 0,
         &g->has_denoise},
        {"like", 0, OPTION_TEXT, &m->like, "IMAGE",
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
         "how several adapters share the picture, NAME[:key=value,...]:\nmerge (the default) or "
         "another of `weft help compose`",
         0, 0, NULL},
        {"gates", 0, OPTION_TEXT, &m->gates_file, "FILE",
         "gates of this model for --compose gated, made by\nassets/train/gates.py; default: the "
         "demo model's",
         0, 0, NULL},
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
        {"allow-partial", 0, OPTION_FLAG, &m->allow_partial, NULL,
         "go on when an adapter fits the model only in part", 0, 0, NULL},
        {"home", 0, OPTION_TEXT, &m->home, "DIR", "the repository; see weft help add", 0, 0, NULL},
        {"verbose", 'v', OPTION_FLAG, &m->verbose, NULL, "what was loaded and what matched", 0, 0,
         NULL},
    };
    memcpy(o, table, sizeof table);
    return device_options(o + sizeof table / sizeof *table, &m->on);
}

void making_help(void)
{
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
         "  NAME embedding:NAME          a textual inversion of the repository or --embedding");
}

/* Lays what was given over r. */
static int apply(struct request *r, const struct given *g, struct err *err)
{
    int rc = 0;
    const struct {
        char **to;
        const char *text;
    } text[] = {{&r->prompt, g->prompt},
                {&r->negative, g->negative},
                {&r->model, g->model},
                {&r->sampler, g->sampler},
                {&r->schedule, g->schedule},
                {&r->rng, g->rng},
                {&r->init, g->init},
                {&r->compose, g->compose.n ? g->compose.item[g->compose.n - 1] : NULL}};
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

int making_open_repo(struct making *m, struct err *err)
{
    char *home = repo_home(m->home);
    int rc = home ? 0 : err_nomem(err, 64);
    if (rc == 0 && repo_exists(home)) { /* what --auto learns of files is kept where that can be */
        rc = m->choose ? repo_open(&m->repo, home, REPO_WRITE, err) : ERR_IO;
        rc = rc == ERR_IO ? repo_open(&m->repo, home, REPO_READ, err) : rc;
    }
    free(home);
    m->r.repo = m->repo;
    return rc;
}

static uint64_t fresh_seed(void)
{
    uint32_t s = 0;
    if (getentropy(&s, sizeof s) < 0)
        s = (uint32_t)time(NULL);
    return s;
}

static int fill_in(struct making *m, struct err *err)
{
    int rc = apply(&m->r, &m->given, err);
    if (rc == 0 && !m->r.prompt)
        rc = request_set(&m->r.prompt, "", err);
    if (rc == 0 && !m->r.negative)
        rc = request_set(&m->r.negative, "", err);
    return rc;
}

int making_request(struct making *m, const char *prompt, struct err *err)
{
    making_forget(m);
    request_init(&m->r);
    m->r.repo = m->repo;
    m->given.prompt = prompt;
    m->named = false;
    return fill_in(m, err);
}

int making_parse(struct making *m, const struct option *o, int argc, char **argv, struct err *err)
{
    struct given *g = &m->given;
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int n = 0;

    request_init(&m->r);
    int rc = rest ? options_parse(o, argc, argv, rest, &n, err) : err_nomem(err, 64);
    if (rc == 0 && n > 1)
        rc = err_set(err, ERR_ARG, "one prompt, please, in quotes; '%.60s' is a second", rest[1]);
    if (rc == 0 && m->later && m->like)
        rc = err_set(err, ERR_ARG,
                     "--like is one picture; prompts from standard input take options");
    if (rc == 0 && n && m->later)
        rc = err_set(err, ERR_ARG, "prompts come from standard input; '%.60s' is one too many",
                     rest[0]);
    if (rc == 0 && n == 0 && !m->like && !m->later)
        rc = err_set(err, ERR_ARG, "no prompt; an empty one is written \"\"");
    rc = rc < 0 || m->lent ? rc : making_open_repo(m, err);
    m->r.repo = m->repo;
    if (rc == 0) {
        bool ours = true;
        g->prompt = n ? rest[0] : NULL;
        rc = m->like ? read_like(&m->r, m->like, &ours, err) : 0;
        m->named = !g->prompt && ours;
        if (!m->like && !g->has_seed)
            m->r.seed = fresh_seed();
    }
    free(rest);
    return rc < 0 ? rc : fill_in(m, err);
}
