#include "prompt.h"
#include "prompt_scan.h"
#include "text.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PARTS_MAX    256
#define ADAPTERS_MAX 1024

struct reader {
    struct prompt *out;
    size_t cap_part, cap_adapter;
    struct err *err;
};

/* ---- tags ----------------------------------------------------------------------------------- */

/* A tag in the text: "<", word, ":", content, ">". */
struct tag {
    const char *word, *content;
    size_t n_word, n_content;
};

/* A message about the adapter tag t begins so. */
#define TAG "prompt: <%.*s:%.*s>"
#define TAG_IS(t)                                                                                  \
    (int)(t)->n_word, (t)->word, text_shown((t)->content, (t)->n_content, 60), (t)->content

static bool is_adapter_word(const char *word, size_t n)
{
    static const char *const known[] = {"lora", "lyco", "locon"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (n == strlen(known[i]) && !memcmp(word, known[i], n))
            return true;
    return false;
}

/* Looks for a tag at s, a "<"; last is the text's last ">", or NULL. 1: there is one. 0: that is
 * text. */
static int find_tag(struct tag *tag, const char *s, const char *last, struct err *err)
{
    const char *p = s + 1;
    for (int len; text_is_word(text_char(p, &len));)
        p += len;
    tag->word = s + 1;
    tag->n_word = (size_t)(p - tag->word);
    if (tag->n_word == 0 || *p != ':')
        return 0;
    tag->content = p + 1;
    tag->n_content = last && last > p ? strcspn(p + 1, ">") : 0;
    if (tag->n_content > 0)
        return 1;
    if (!is_adapter_word(tag->word, tag->n_word))
        return 0;
    return err_set(err, ERR_ARG, "prompt: <%.*s:%s", (int)tag->n_word, tag->word,
                   *tag->content == '>' ? "> names no adapter" : "… has no > at its end");
}

/* A strength that fills s[n] but for white space. */
static bool read_strength(const char *s, size_t n, double *v)
{
    const char *begin = prompt_scan_space(s);
    const char *end = begin < s + n ? prompt_scan_number(begin, true) : NULL;
    if (!end || prompt_scan_space(end) < s + n || end > s + n)
        return false;
    *v = prompt_scan_value(begin);
    return true;
}

/* The strengths of one adapter tag, as they are found from its end. */
struct strengths {
    double number[2], te, unet;
    int n_number;
    bool has_te, has_unet;
};

/* Takes the tag's last item. 1: it was a strength; 0: it belongs to the name. */
static int take_item(struct strengths *f, const struct tag *tag, const char *item, size_t n,
                     struct err *err)
{
    const char *equals = memchr(item, '=', n);
    double v;

    if (read_strength(item, n, &v)) {
        if (f->n_number == 2)
            return err_set(err, ERR_UNSUPPORTED, TAG ": a third number is not something weft does",
                           TAG_IS(tag));
        f->number[f->n_number++] = v;
        return 1;
    }
    if (!equals && n > 0)
        return 0;
    if (n == 0)
        return err_set(err, ERR_ARG, TAG ": a strength is missing", TAG_IS(tag));
    size_t n_key = (size_t)(equals - item);
    bool te = n_key == 2 && !memcmp(item, "te", 2), unet = n_key == 4 && !memcmp(item, "unet", 4);
    if (!te && !unet)
        return err_set(err, ERR_UNSUPPORTED, TAG ": %.*s= is not something weft does", TAG_IS(tag),
                       text_shown(item, n_key, 40), item);
    if (!read_strength(equals + 1, n - n_key - 1, &v))
        return err_set(err, ERR_ARG, TAG ": %.*s is not a strength", TAG_IS(tag),
                       text_shown(item, n, 40), item);
    /* Of two with the same name the last one counts: the one that was found first. */
    if (te && !f->has_te)
        f->te = v;
    if (unet && !f->has_unet)
        f->unet = v;
    f->has_te |= te;
    f->has_unet |= unet;
    return 1;
}

static int add_adapter(struct reader *r, const struct tag *tag)
{
    struct strengths f = {0};
    size_t n = tag->n_content;
    int rc;

    for (;;) {
        const char *colon = memrchr(tag->content, ':', n);
        if (!colon)
            break;
        const char *item = colon + 1;
        rc = take_item(&f, tag, item, (size_t)(tag->content + n - item), r->err);
        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        n = (size_t)(colon - tag->content);
    }
    if (n == 0)
        return err_set(r->err, ERR_ARG, TAG " names no adapter", TAG_IS(tag));
    if (r->out->n_adapter == ADAPTERS_MAX)
        return err_set(r->err, ERR_ARG, "prompt: more than %d adapters", ADAPTERS_MAX);
    void *grown = prompt_scan_grow(r->out->adapter, r->out->n_adapter, &r->cap_adapter,
                                   sizeof *r->out->adapter, r->err);
    if (!grown)
        return ERR_NOMEM;
    r->out->adapter = grown;
    struct prompt_adapter *a = &r->out->adapter[r->out->n_adapter];
    a->te = f.has_te ? f.te : f.n_number ? f.number[f.n_number - 1] : 1;
    a->unet = f.has_unet ? f.unet : f.n_number == 2 ? f.number[0] : a->te;
    if (!(fabs(a->te) <= (double)FLT_MAX && fabs(a->unet) <= (double)FLT_MAX))
        return err_set(r->err, ERR_ARG, TAG ": a strength is too large", TAG_IS(tag));
    a->name = prompt_scan_copy(tag->content, n);
    if (!a->name)
        return err_nomem(r->err, n + 1);
    r->out->n_adapter++;
    return 0;
}

/* Copies the text without its tags to plain, which has room for all of it. */
static int take_tags(struct reader *r, const char *text, char *plain)
{
    const char *last = strrchr(text, '>');
    struct tag tag;
    int rc = 0;

    while (*text) {
        rc = *text == '<' ? find_tag(&tag, text, last, r->err) : 0;
        if (rc < 0)
            return rc;
        if (rc == 0) {
            *plain++ = *text++;
            continue;
        }
        if (!is_adapter_word(tag.word, tag.n_word))
            return err_set(r->err, ERR_UNSUPPORTED, "prompt: <%.*s:…> is not something weft does",
                           text_shown(tag.word, tag.n_word, 40), tag.word);
        if ((rc = add_adapter(r, &tag)) < 0)
            return rc;
        text = tag.content + tag.n_content + 1;
    }
    *plain = 0;
    return 0;
}

/* ---- parts ---------------------------------------------------------------------------------- */

/* The start of the row of digits and points that s[n] ends in. */
static size_t row_before(const char *s, size_t n)
{
    while (n > 0) {
        int32_t c = text_char_before(s + n);
        if (c != '.' && !text_is_digit(c))
            break;
        do
            n--;
        while (((unsigned char)s[n] & 0xc0) == 0x80);
    }
    return n;
}

/* Takes ":weight" off the end of s[*n], and the white space around it. */
static int take_weight(const char *s, size_t *n, double *weight, struct err *err)
{
    *weight = 1;
    size_t end = *n = prompt_scan_trim(s, *n), row = row_before(s, end);
    if (row == end)
        return 0;
    size_t number = row - (row > 0 && (s[row - 1] == '+' || s[row - 1] == '-'));
    size_t colon = prompt_scan_trim(s, number);
    if (colon == 0 || s[colon - 1] != ':')
        return 0;
    const char *after = prompt_scan_number(s + number, false);
    bool ascii = strspn(s + row, ".0123456789") >= end - row;
    if (ascii && after != s + end)
        return 0;
    *weight = ascii ? prompt_scan_value(s + number) : (double)NAN;
    if (!(fabs(*weight) <= (double)FLT_MAX))
        return err_set(err, ERR_ARG, "prompt: \"%.*s\" is not a weight",
                       text_shown(s + number, end - number, 40), s + number);
    *n = prompt_scan_trim(s, colon - 1);
    return 0;
}

static int add_part(struct reader *r, const char *s, size_t n, bool weighted)
{
    struct prompt_part part = {.weight = 1};
    int rc = weighted ? take_weight(s, &n, &part.weight, r->err) : 0;
    if (rc < 0)
        return rc;
    if (r->out->n_part == PARTS_MAX)
        return err_set(r->err, ERR_ARG, "prompt: AND joins more than %d parts", PARTS_MAX);
    void *grown =
        prompt_scan_grow(r->out->part, r->out->n_part, &r->cap_part, sizeof *r->out->part, r->err);
    if (!grown)
        return ERR_NOMEM;
    r->out->part = grown;
    part.text = prompt_scan_copy(s, n);
    if (!part.text)
        return err_nomem(r->err, n + 1);
    r->out->part[r->out->n_part++] = part;
    return 0;
}

static int take_parts(struct reader *r, const char *s)
{
    size_t n = strlen(s), begin = 0;
    int rc;

    for (size_t i = 0; i + 3 <= n; i++) {
        if (memcmp(s + i, "AND", 3) != 0 || !prompt_scan_boundary(s, n, i) ||
            !prompt_scan_boundary(s, n, i + 3))
            continue;
        if ((rc = add_part(r, s + begin, i - begin, true)) < 0)
            return rc;
        begin = i + 3;
    }
    return add_part(r, s + begin, n - begin, true);
}

static int read_prompt(struct prompt *out, const char *text, bool negative, struct err *err)
{
    struct reader r = {.out = out, .err = err};
    char *plain = NULL;
    size_t n;
    int rc = prompt_scan_check(text, &n, err);

    *out = (struct prompt){0};
    if (rc < 0)
        return rc;
    plain = malloc(n + 1);
    if (!plain) {
        rc = err_nomem(err, n + 1);
        goto out;
    }
    rc = take_tags(&r, text, plain);
    if (rc == 0 && negative && out->n_adapter)
        rc = err_set(err, ERR_ARG, "the negative prompt takes no <lora:…>");
    if (rc == 0)
        rc = negative ? add_part(&r, plain, strlen(plain), false) : take_parts(&r, plain);
out:
    if (rc < 0)
        prompt_release(out);
    free(plain);
    return rc;
}

int prompt_read(struct prompt *out, const char *text, struct err *err)
{
    return read_prompt(out, text, false, err);
}

int prompt_read_negative(struct prompt *out, const char *text, struct err *err)
{
    return read_prompt(out, text, true, err);
}

void prompt_release(struct prompt *p)
{
    for (size_t i = 0; i < p->n_part; i++)
        free(p->part[i].text);
    for (size_t i = 0; i < p->n_adapter; i++)
        free(p->adapter[i].name);
    free(p->part);
    free(p->adapter);
    *p = (struct prompt){0};
}
