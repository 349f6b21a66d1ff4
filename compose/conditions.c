#include "conditions.h"

#include <stdlib.h>
#include <string.h>

static int add_row(struct conditions *c, const char *text, double weight, int steps,
                   struct err *err)
{
    struct condition_row *r = &c->row[c->n_row];
    memset(r, 0, sizeof *r);
    int rc = prompt_stages_parse(&r->stages, text, steps, err);
    if (rc < 0)
        return rc;
    r->first = c->n_text;
    r->weight = weight;
    c->n_row++;
    c->n_text += (int)r->stages.n;
    return 0;
}

/* Tokens of every stage of every row, all with the same number of chunks. */
static int add_chunks(struct conditions *c, const struct tokenizer *t, struct words *words,
                      struct err *err)
{
    int k = 0, rc = 0;
    c->chunks = calloc((size_t)c->n_text, sizeof *c->chunks);
    if (!c->chunks)
        return err_nomem(err, (size_t)c->n_text * sizeof *c->chunks);
    for (int i = 0; i < c->n_row; i++)
        for (size_t j = 0; j < c->row[i].stages.n && rc == 0; j++, k++) {
            rc = prompt_chunks_make(&c->chunks[k], t, words, c->row[i].stages.stage[j].text,
                                    c->length, err);
            if (rc == 0 && c->chunks[k].n_chunk > c->n_chunk)
                c->n_chunk = c->chunks[k].n_chunk;
        }
    for (k = 0; k < c->n_text && rc == 0; k++)
        rc = prompt_chunks_pad(&c->chunks[k], t, c->n_chunk, err);
    return rc;
}

/* How often a text is to be encoded. */
static int layers_of(const struct conditions *c, const struct prompt_chunks *ch)
{
    int n = 1;
    for (int i = 0; i < ch->n_chunk * c->length && n == 1; i++)
        n = words_layers(c->words, ch->id[i]);
    return n;
}

int conditions_parse(struct conditions *c, const struct tokenizer *t, struct words *words,
                     int length, const struct prompt *prompt, const struct prompt *negative,
                     int steps, struct err *err)
{
    int rc = 0;
    memset(c, 0, sizeof *c);
    c->length = length;
    c->words = words;
    c->row = calloc(prompt->n_part + 1, sizeof *c->row);
    if (!c->row)
        return err_nomem(err, (prompt->n_part + 1) * sizeof *c->row);
    if (negative && (negative->n_part != 1 || negative->n_adapter))
        return err_set(err, ERR_ARG, "a negative prompt has one part (prompt_read_negative)");
    if (negative)
        rc = add_row(c, negative->part[0].text, 1, steps, err);
    for (size_t i = 0; i < prompt->n_part && rc == 0; i++)
        rc = add_row(c, prompt->part[i].text, prompt->part[i].weight, steps, err);
    rc = rc < 0 ? rc : add_chunks(c, t, words, err);
    c->n_own = c->n_text;
    c->n_layer = 1;
    for (int k = 0; k < c->n_text && rc == 0; k++) {
        int n = layers_of(c, &c->chunks[k]);
        c->n_encode += n;
        c->n_layer = n > 1 ? n : c->n_layer;
    }
    return rc;
}

int conditions_add(struct conditions *c, const struct tokenizer *t, struct words *words,
                   const char *text, int *index, struct err *err)
{
    struct prompt_chunks *more = realloc(c->chunks, (size_t)(c->n_text + 1) * sizeof *more);
    if (!more)
        return err_nomem(err, sizeof *more);
    c->chunks = more;
    struct prompt_chunks *own = &more[c->n_text];
    memset(own, 0, sizeof *own);
    *index = c->n_text++;
    int rc = prompt_chunks_make(own, t, words, text, c->length, err);
    if (rc < 0)
        return rc;
    if (own->n_chunk > c->n_chunk)
        c->n_chunk = own->n_chunk;
    for (int k = 0; k < c->n_text && rc == 0; k++)
        rc = prompt_chunks_pad(&c->chunks[k], t, c->n_chunk, err);
    int n = layers_of(c, own);
    c->n_encode += n;
    c->n_layer = n > 1 ? n : c->n_layer;
    return rc;
}

/* Scales each token's state by its weight, then all so that their mean is what it was. */
static void weigh(float *hidden, const float *weight, int length, int width)
{
    double before = 0, after = 0;
    for (int i = 0; i < length; i++)
        for (int k = 0; k < width; k++) {
            float *p = &hidden[(size_t)i * (size_t)width + (size_t)k];
            before += *p;
            *p *= weight[i];
            after += *p;
        }
    float scale = (float)(before / after);
    for (int i = 0; i < length * width; i++)
        hidden[i] *= scale;
}

/* Text k as a cross attention finds it, into one row. */
static int encode_layer(struct conditions *c, const struct clip_text *clip, int skip,
                        struct run *pass, int k, int layer, struct tensor *to, float *host,
                        struct err *err)
{
    const struct prompt_chunks *ch = &c->chunks[k];
    size_t row = (size_t)c->length * (size_t)clip->tower.width;

    run_reset(pass);
    struct tensor y =
        clip_text_forward(clip, pass, c->words, ch->id, c->n_chunk, c->length, skip, layer);
    int rc = run_check(pass, err);
    rc = rc < 0 ? rc : pass->dev->be->download(pass->dev, host, &y, err);
    for (int i = 0; i < c->n_chunk && rc == 0 && ch->weighted; i++)
        weigh(host + (size_t)i * row, ch->weight + i * c->length, c->length, clip->tower.width);
    return rc < 0 ? rc : pass->dev->be->upload(pass->dev, to, host, err);
}

/* Text k; what is the same for all cross attentions is encoded once. */
static int encode_text(struct conditions *c, const struct clip_text *clip, int skip,
                       struct run *pass, int k, struct tensor *hidden, float *host, struct err *err)
{
    int n = layers_of(c, &c->chunks[k]), rc = 0;
    for (int i = 0; i < c->n_layer && rc == 0; i++) {
        struct tensor to = tensor_rows(hidden, i, 1);
        rc = i < n ? encode_layer(c, clip, skip, pass, k, i, &to, host, err)
                   : pass->dev->be->upload(pass->dev, &to, host, err);
    }
    return rc;
}

int conditions_encode(struct conditions *c, const struct clip_text *clip, int skip,
                      struct run *pass, struct tensor *hidden, struct err *err)
{
    size_t n = (size_t)c->n_chunk * (size_t)c->length * (size_t)clip->tower.width;
    float *host = malloc(n * sizeof *host);
    if (!host)
        return err_nomem(err, n * sizeof *host);
    run_measure(pass);
    clip_text_forward(clip, pass, c->words, c->chunks[0].id, c->n_chunk, c->length, skip, 0);
    int rc = run_commit(pass, err);
    for (int k = 0; k < c->n_text && rc == 0; k++)
        rc = encode_text(c, clip, skip, pass, k, &hidden[k], host, err);
    free(host);
    return rc;
}

int conditions_at(const struct conditions *c, int row, int step)
{
    const struct prompt_stages *s = &c->row[row].stages;
    size_t i = 0;
    while (i + 1 < s->n && step > s->stage[i].until)
        i++;
    return c->row[row].first + (int)i;
}

void conditions_release(struct conditions *c)
{
    for (int i = 0; i < c->n_row; i++)
        prompt_stages_release(&c->row[i].stages);
    for (int i = 0; c->chunks && i < c->n_text; i++)
        prompt_chunks_release(&c->chunks[i]);
    free(c->row);
    free(c->chunks);
    memset(c, 0, sizeof *c);
}
