#include "embedding.h"

#include "adapter.h"

#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool begins(const char *s, const char *with)
{
    return !strncmp(s, with, strlen(with));
}

static bool is_vectors(const struct array *a)
{
    return a->ndim >= 1 && a->ndim <= 2 && array_readable(a);
}

/* "<cat-toy>" */
static bool is_token(const char *key)
{
    size_t n = strlen(key);
    return n > 2 && key[0] == '<' && key[n - 1] == '>';
}

/* cloneofsimo's metadata says which of its keys are words. */
static bool is_flagged(const struct tensor_file *f, size_t i)
{
    const char *flag = tensor_file_at(f, i)->ndim == 1 && tensor_file_metadata_count(f) < 1000
                           ? tensor_file_metadata(f, tensor_file_name(f, i))
                           : NULL;
    return flag && !strcmp(flag, "<embed>");
}

/* What a key says of an embedding. */
struct reading {
    const char *name; /* not terminated; NULL: the file's stem */
    size_t n;
    bool per_layer;
};

/* "bundle_emb.NAME.string_to_param.*", "bundle_emb.NAME.clip_g", "bundle_emb.NAME.emb_params"; NAME may
 * hold dots. */
static bool read_bundle(const char *key, struct reading *r)
{
    static const char *const ends[] = {".clip_g", ".clip_l", ".emb_params"};
    const char *name = key + strlen("bundle_emb."), *end = strstr(name, ".string_to_param.");
    for (size_t i = 0, n = strlen(name); i < 3 && !end; i++)
        if (n > strlen(ends[i]) && !strcmp(name + n - strlen(ends[i]), ends[i]))
            end = name + n - strlen(ends[i]);
    *r = (struct reading){name, end ? (size_t)(end - name) : 0, false};
    return end > name;
}

/* Whether tensor i is an embedding, and what is to be known of it. */
static bool recognise(const struct tensor_file *f, size_t i, struct reading *r)
{
    const char *key = tensor_file_name(f, i);
    *r = (struct reading){0};
    if (begins(key, "bundle_emb."))
        return read_bundle(key, r);
    if (begins(key, "params."))
        key += 7;
    if (begins(key, "new_concept_embedding.")) {
        key += strlen("new_concept_embedding.");
        *r = (struct reading){key, strlen(key), true};
        return *key;
    }
    if (begins(key, "string_to_param.") || !strcmp(key, "emb_params") || !strcmp(key, "clip_l") ||
        !strcmp(key, "clip_g"))
        return true;
    *r = (struct reading){key, strlen(key), false};
    if (is_token(key) || is_flagged(f, i))
        return true;
    /* diffusers' dict of one token, which may be any word, but is the whole file */
    return tensor_file_count(f) == 1 && is_vectors(tensor_file_at(f, i)) && !strchr(key, '.') &&
           !strchr(key, ':') && strcmp(key, "tensor") && *key && (*key < '0' || *key > '9') &&
           !adapter_kind_of_key(key) && !strstr(key, "lora");
}

bool embedding_owns(const struct tensor_file *f, size_t i)
{
    struct reading r;
    return recognise(f, i, &r);
}

static int fill(struct embedding *e, const struct reading *r, const struct tensor_file *f,
                const struct array *a, const char *path, struct err *err)
{
    const char *declared = r->name ? NULL : tensor_file_metadata(f, "name");
    size_t count = array_count(a);
    uint64_t n = a->ndim == 2 ? a->dim[0] : 1, width = a->ndim ? a->dim[a->ndim - 1] : 0;
    *e = (struct embedding){.per_layer = r->per_layer};
    e->name = r->name ? strndup(r->name, r->n) : file_stem(path);
    e->declared = declared ? strdup(declared) : NULL;
    if (!e->name || (declared && !e->declared))
        return err_nomem(err, r->n + 64);
    if (!is_vectors(a) || n < 1 || n > 4096 || width < 1 || width > 65536)
        return err_set(err, ERR_FORMAT, "%s: '%.100s' is no list of vectors", path, e->name);
    e->n_vec = (int)n;
    e->width = (int)width;
    e->vec = malloc(count * sizeof *e->vec);
    if (!e->vec)
        return err_nomem(err, count * sizeof *e->vec);
    if (array_first_bad(a) >= 0)
        return err_set(err, ERR_FORMAT, "%s: '%.100s' has values that are infinite or NaN", path,
                       e->name);
    array_to_f32(a, e->vec);
    return 0;
}

int embedding_read(struct embedding_list *l, const struct tensor_file *file, const char *path,
                   struct err *err)
{
    struct reading r;
    int rc = 0;
    for (size_t i = 0; i < tensor_file_count(file) && rc == 0; i++) {
        if (!recognise(file, i, &r))
            continue;
        size_t n = (size_t)l->n + 1;
        struct embedding *p = realloc(l->item, n * sizeof *p);
        if (!p)
            return err_nomem(err, n * sizeof *p);
        l->item = p;
        rc = fill(&p[l->n++], &r, file, tensor_file_at(file, i), path, err);
    }
    return rc;
}

void embedding_list_release(struct embedding_list *l)
{
    for (int i = 0; i < l->n; i++) {
        free(l->item[i].name);
        free(l->item[i].declared);
        free(l->item[i].vec);
    }
    free(l->item);
    *l = (struct embedding_list){0};
}
