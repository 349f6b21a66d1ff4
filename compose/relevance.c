#include "relevance.h"

#include "unet/prompt.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LEAST_PART .05

/* ---- words ----------------------------------------------------------------------------------- */

const char *relevance_find(const char *text, const char *word, size_t n)
{
    for (const char *p = text; n && *p; p++)
        if (!strncasecmp(p, word, n) && (p == text || !isalnum((unsigned char)p[-1])) &&
            !isalnum((unsigned char)p[n]))
            return p;
    return NULL;
}

char *relevance_without(const char *text, const char *triggers)
{
    char *out = strdup(text);
    for (const char *t = triggers; out && t && *t;) {
        size_t n = strcspn(t, ","), skip = strspn(t, " ");
        size_t last = n;
        while (last > skip && t[last - 1] == ' ')
            last--;
        const char *p = skip < last ? relevance_find(out, t + skip, last - skip) : NULL;
        if (p)
            memmove(out + (p - out), p + (last - skip), strlen(p + (last - skip)) + 1);
        t += n + (t[n] == ',');
    }
    return out;
}

/* ---- the encoder ----------------------------------------------------------------------------- */

/* e(text), out[width]. */
static int embed(const struct model *m, const char *text, float *out, struct err *err)
{
    struct prompt_chunks c;
    float *state = NULL;
    int width = m->text->tower.width, rc = model_text_states(m, text, &c, &state, err),
        tokens = c.n_chunk * c.length;
    for (int k = 0; k < width && rc == 0; k++) {
        double sum = 0;
        for (int i = 0; i < tokens; i++)
            sum += state[i * width + k];
        out[k] = (float)(sum / tokens);
    }
    free(state);
    prompt_chunks_release(&c);
    return rc;
}

static double cosine(const float *a, const float *b, int n)
{
    double ab = 0, aa = 0, bb = 0;
    for (int i = 0; i < n; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

static int measure_one(const struct model *m, const char *prompt, const float *whole,
                       const char *triggers, float *e, struct relevance *out, struct err *err)
{
    int width = m->text->tower.width;
    char *rest = relevance_without(prompt, triggers);
    int rc = rest ? embed(m, rest, e, err) : err_nomem(err, strlen(prompt));
    if (rc == 0) {
        out->part = fmax(1 - cosine(whole, e, width), LEAST_PART);
        rc = embed(m, triggers, e, err);
    }
    if (rc == 0)
        out->match = fmax(cosine(whole, e, width), 0);
    free(rest);
    return rc;
}

int relevance_measure(const struct model *m, const char *prompt, const char *const *triggers, int n,
                      struct relevance *out, struct err *err)
{
    size_t width = (size_t)m->text->tower.width;
    float *whole = malloc(2 * width * sizeof *whole);
    int known = 0, rc = whole ? embed(m, prompt, whole, err) : err_nomem(err, width);
    double part = 0, match = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        out[i] = (struct relevance){LEAST_PART, NAN};
        if (triggers[i] && *triggers[i]) {
            rc = measure_one(m, prompt, whole, triggers[i], whole + width, &out[i], err);
            match += out[i].match;
            known++;
        }
    }
    double mean = match > 0 ? match / known : 1, all = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        out[i].match = isnan(out[i].match) || match == 0 ? mean : out[i].match;
        part += out[i].part;
        all += out[i].match;
    }
    for (int i = 0; i < n && rc == 0; i++)
        out[i] = (struct relevance){out[i].part / part, out[i].match / all};
    free(whole);
    return rc;
}
