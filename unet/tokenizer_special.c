#include "tokenizer_data.h"

#include "text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ADDED_MAX 256

/* The special tokens in the order in which the reference adds them. Where two are the same text,
 * the last one says whether it is looked for before or after folding. */
static const char *const names[] = {"bos_token", "eos_token", "unk_token",  "sep_token",
                                    "pad_token", "cls_token", "mask_token", NULL};

/* The files, parsed. Members are NULL where a file is not there. */
struct sources {
    json_t *config, *special, *added;
    json_t *decoder; /* borrowed: added_tokens_decoder of config; the other two do not count then */
};

/* The added token with that text, made if there is none yet. */
static int find_added(struct added **out, struct tokenizer *t, const char *text, struct err *err)
{
    for (size_t i = 0; i < t->n_added; i++)
        if (!strcmp(t->added[i].text, text)) {
            *out = &t->added[i];
            return 0;
        }
    if (t->n_added == ADDED_MAX)
        return err_set(err, ERR_UNSUPPORTED, "more than %d added tokens", ADDED_MAX);
    struct added *grown = realloc(t->added, (t->n_added + 1) * sizeof *grown);
    if (!grown)
        return err_nomem(err, (t->n_added + 1) * sizeof *grown);
    t->added = grown;
    struct added *a = &grown[t->n_added];
    *a = (struct added){.text = strdup(text), .id = -1};
    if (!a->text)
        return err_nomem(err, strlen(text) + 1);
    t->n_added++;
    *out = a;
    return 0;
}

/* A token as a file gives it: its text, or an AddedToken object. */
struct token {
    const char *text; /* borrowed */
    int normalized;   /* -1: not said */
    bool special;
};

static int read_token(struct token *out, const json_t *value, const char *what, struct err *err)
{
    const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
    const json_t *normalized = json_object_get(value, "normalized");

    out->text = json_string_value(content);
    if (!out->text || !*out->text)
        return err_set(err, ERR_FORMAT, "%s is neither a text nor a token", what);
    if (json_is_true(json_object_get(value, "single_word")))
        return err_set(err, ERR_UNSUPPORTED, "%s is a single_word token, which weft does not do",
                       what);
    out->normalized = json_is_boolean(normalized) ? json_is_true(normalized) : -1;
    out->special = json_is_true(json_object_get(value, "special"));
    return 0;
}

/* Gives a listed token its id: the vocabulary's, else the next free one, which must be the id that
 * the file says. */
static int place(struct tokenizer *t, struct added *a, json_int_t said, const char *what,
                 struct err *err)
{
    int32_t id = tokenizer_id(t, a->text);
    if (id < 0)
        id = t->size++;
    if (said != id)
        return err_set(err, ERR_FORMAT, "%s has id %" JSON_INTEGER_FORMAT ", not %d", what, said,
                       id);
    a->id = id;
    return 0;
}

/* One token of a list. what names it in messages. */
static int add_listed(struct tokenizer *t, const json_t *value, json_int_t id, const char *what,
                      struct err *err)
{
    struct added *a = NULL;
    struct token token;
    int rc;

    if ((rc = read_token(&token, value, what, err)) < 0 ||
        (rc = find_added(&a, t, token.text, err)) < 0)
        return rc;
    a->folded = token.normalized < 0 ? !token.special : token.normalized;
    a->from = json_is_string(value)  ? ADDED_PLAIN
              : token.normalized < 0 ? ADDED_VAGUE
                                     : ADDED_LISTED;
    return place(t, a, id, what, err);
}

struct listed {
    json_int_t id;
    const char *key;
    json_t *value;
};

static int compare_listed(const void *a, const void *b)
{
    const struct listed *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The entries of added_tokens_decoder (id → token) or added_tokens.json (text → id), by id. */
static int add_list(struct tokenizer *t, json_t *list, bool keyed_by_id, struct err *err)
{
    struct listed *entry = NULL;
    size_t n = 0;
    const char *key;
    json_t *value;
    int rc = 0;

    if (json_object_size(list) > ADDED_MAX)
        return err_set(err, ERR_UNSUPPORTED, "more than %d added tokens", ADDED_MAX);
    entry = calloc(json_object_size(list) + 1, sizeof *entry);
    if (!entry)
        return err_nomem(err, (json_object_size(list) + 1) * sizeof *entry);
    json_object_foreach(list, key, value)
    {
        char *end = NULL;
        entry[n] = (struct listed){.key = key, .value = value, .id = -1};
        if (keyed_by_id && *key >= '0' && *key <= '9') {
            errno = 0;
            long long id = strtoll(key, &end, 10);
            entry[n].id = errno || *end ? -1 : id;
        } else if (!keyed_by_id && json_is_integer(value)) {
            entry[n].id = json_integer_value(value);
        }
        n++;
    }
    qsort(entry, n, sizeof *entry, compare_listed);
    for (size_t i = 0; i < n && rc == 0; i++) {
        json_t *text = keyed_by_id ? json_incref(entry[i].value) : json_string(entry[i].key);
        char what[64];
        int n_what = text_shown(entry[i].key, strlen(entry[i].key), sizeof what - 1);
        snprintf(what, sizeof what, "%.*s", n_what, entry[i].key);
        rc = text ? add_listed(t, text, entry[i].id, what, err) : err_nomem(err, 1);
        json_decref(text);
    }
    free(entry);
    return rc;
}

/* A special token: it must be in the vocabulary or in a list of added tokens. by_text: a file
 * names it in the way in which the reference sees that a token of added_tokens.json is special. */
static int add_named(struct tokenizer *t, const json_t *value, bool by_text, const char *what,
                     int32_t *id, struct err *err)
{
    struct added *a = NULL;
    struct token token;
    int rc;

    if ((rc = read_token(&token, value, what, err)) < 0 ||
        (rc = find_added(&a, t, token.text, err)) < 0)
        return rc;
    if (a->from == ADDED_NAMED)
        a->folded = token.normalized == 1;
    else if (a->from == ADDED_VAGUE || (a->from == ADDED_PLAIN && by_text))
        a->folded = false;
    if (a->id < 0)
        a->id = tokenizer_id(t, token.text);
    if (a->id < 0)
        return err_set(err, ERR_FORMAT, "%s is \"%.*s\", which vocab.json does not have", what,
                       text_shown(token.text, strlen(token.text), 80), token.text);
    *id = a->id;
    return 0;
}

static int add_extra(struct tokenizer *t, const json_t *list, const char *what, struct err *err)
{
    int32_t id;
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++) {
        const json_t *value = json_array_get(list, i);
        rc = add_named(t, value, json_is_string(value), what, &id, err);
    }
    return rc;
}

static int add_special(struct tokenizer *t, const struct sources *from, struct err *err)
{
    int32_t other = -1, *ids[] = {&t->bos, &t->eos, &t->unk, &other, &t->pad, &other, &other};
    int rc;

    for (size_t i = 0; names[i]; i++) {
        const json_t *value = from->decoder ? NULL : json_object_get(from->special, names[i]);
        bool by_text = value != NULL;
        json_t *usual = NULL;
        if (!value) {
            value = json_object_get(from->config, names[i]);
            by_text = json_is_string(value);
        }
        if (!value || json_is_null(value)) {
            if (ids[i] == &other)
                continue;
            value = usual = json_string(i == 0 ? "<|startoftext|>" : "<|endoftext|>");
            by_text = false;
            if (!usual)
                return err_nomem(err, 1);
        }
        rc = add_named(t, value, by_text, names[i], ids[i], err);
        json_decref(usual);
        if (rc < 0)
            return rc;
    }
    if ((rc = add_extra(t, json_object_get(from->config, "additional_special_tokens"),
                        "additional_special_tokens", err)) < 0)
        return rc;
    return add_extra(t, json_object_get(from->config, "extra_special_tokens"),
                     "extra_special_tokens", err);
}

static int compare_added(const void *a, const void *b)
{
    const struct added *x = a, *y = b;
    if (x->length != y->length)
        return x->length > y->length ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* What each added token is found by, and its name among the tokens. */
static int finish(struct tokenizer *t, struct err *err)
{
    const char **token = realloc(t->token, (size_t)t->size * sizeof *token);
    if (!token)
        return err_nomem(err, (size_t)t->size * sizeof *token);
    t->token = token;
    for (size_t i = 0; i < t->n_added; i++) {
        struct added *a = &t->added[i];
        int rc = text_check(a->text, strlen(a->text), "added token", err);
        if (rc < 0)
            return rc;
        if (a->folded) {
            if ((rc = text_fold(&a->match, &a->length, a->text, strlen(a->text), err)) < 0)
                return rc;
        } else {
            a->match = strdup(a->text);
            if (!a->match)
                return err_nomem(err, strlen(a->text) + 1);
            a->length = strlen(a->text);
        }
        if (a->id >= t->n_vocab)
            token[a->id] = a->text;
    }
    if (t->n_added > 0)
        qsort(t->added, t->n_added, sizeof *t->added, compare_added);
    return 0;
}

int tokenizer_load_special(struct tokenizer *t, const struct tokenizer_files *files,
                           const char *dir, struct err *err)
{
    struct sources from = {0};
    const char *where = "tokenizer_config.json";
    int rc;

    if ((rc = tokenizer_load_json(&from.config, &files->config, dir, where, err)) < 0 ||
        (rc = tokenizer_load_json(&from.special, &files->special, dir, "special_tokens_map.json",
                                  err)) < 0 ||
        (rc = tokenizer_load_json(&from.added, &files->added, dir, "added_tokens.json", err)) < 0)
        goto out;
    from.decoder = json_object_get(from.config, "added_tokens_decoder");
    if (from.decoder && !json_is_object(from.decoder)) {
        rc = err_set(err, ERR_FORMAT, "%s/%s: added_tokens_decoder is not an object", dir, where);
        goto out;
    }
    if (from.decoder) {
        rc = add_list(t, from.decoder, true, err);
    } else if (from.added) {
        where = "added_tokens.json";
        rc = add_list(t, from.added, false, err);
    }
    if (rc == 0) {
        where = from.special && !from.decoder ? "special_tokens_map.json"
                : from.config                 ? "tokenizer_config.json"
                                              : "vocab.json";
        rc = add_special(t, &from, err);
    }
    if (rc == 0)
        rc = finish(t, err);
    if (rc < 0)
        err_prefix(err, "%s/%s", dir, where);
out:
    json_decref(from.config);
    json_decref(from.special);
    json_decref(from.added);
    return rc;
}
