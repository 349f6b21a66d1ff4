/* What a pickle may name, and what becomes of it: the whole of what a hostile file can reach. */
#include "pickle_machine.h"

#include <string.h>

/* ---- what may be named ----------------------------------------------------------------------- */

enum action { STORAGE, ORDERED_DICT, TENSOR, PARAMETER, SIZE, PARAMETERS, SET };

/* Everything a pickle may name. Nothing here is a function of ours that a file could reach: reduce()
 *  says what each becomes. */
static const struct global {
    const char *module, *name;
    enum action action;
    enum dtype dtype;
} globals[] = {
    {"collections", "OrderedDict", ORDERED_DICT, 0},
    {"torch._utils", "_rebuild_tensor", TENSOR, 0},
    {"torch._utils", "_rebuild_tensor_v2", TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", PARAMETER, 0},
    {"torch", "Size", SIZE, 0},
    {"torch.nn.modules.container", "ParameterDict", PARAMETERS, 0}, /* textual inversions of 2022 */
    {"__builtin__", "set", SET, 0},                                 /* an attribute of that */
    {"builtins", "set", SET, 0},
    {"torch", "FloatStorage", STORAGE, DT_F32},
    {"torch", "HalfStorage", STORAGE, DT_F16},
    {"torch", "BFloat16Storage", STORAGE, DT_BF16},
    {"torch", "DoubleStorage", STORAGE, DT_F64},
    {"torch", "LongStorage", STORAGE, DT_I64},
    {"torch", "IntStorage", STORAGE, DT_I32},
    {"torch", "ShortStorage", STORAGE, DT_I16},
    {"torch", "CharStorage", STORAGE, DT_I8},
    {"torch", "ByteStorage", STORAGE, DT_U8},
    {"torch", "BoolStorage", STORAGE, DT_BOOL},
    {"torch", "ComplexFloatStorage", STORAGE, DT_C64},
};

static int refuse(struct machine *m, const char *module, size_t n_module, const char *name,
                  size_t n_name)
{
    return err_set(m->err, ERR_FORMAT, "this file asks to run %.*s.%.*s: refused",
                   (int)(n_module < 200 ? n_module : 200), module,
                   (int)(n_name < 200 ? n_name : 200), name);
}

/* ---- globals and what they become ------------------------------------------------------------- */

static int push_global(struct machine *m, const char *module, size_t n_module, const char *name,
                       size_t n_name)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (strlen(globals[i].module) == n_module && !memcmp(globals[i].module, module, n_module) &&
            strlen(globals[i].name) == n_name && !memcmp(globals[i].name, name, n_name))
            return machine_push_kind(m, PICKLE_GLOBAL, (int64_t)i);
    return refuse(m, module, n_module, name, n_name);
}

/* GLOBAL, and INST, which would call it too. */
int objects_global(struct machine *m, bool call)
{
    const char *module, *name;
    size_t n_module, n_name;
    int rc = machine_line(m, &module, &n_module);
    rc = rc < 0 ? rc : machine_line(m, &name, &n_name);
    if (rc < 0)
        return rc;
    return call ? refuse(m, module, n_module, name, n_name)
                : push_global(m, module, n_module, name, n_name);
}

int objects_stack_global(struct machine *m)
{
    struct pickle_value *name = machine_pop(m), *module = name ? machine_pop(m) : NULL;
    if (!module)
        return ERR_FORMAT;
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
        return machine_bad(m, "a global without a name");
    return push_global(m, module->text, module->n, name->text, name->n);
}

static const struct global *global_of(const struct pickle_value *v)
{
    return v->kind == PICKLE_GLOBAL ? &globals[v->i] : NULL;
}

static bool is_sizes(const struct pickle_value *v)
{
    if (v->kind != PICKLE_TUPLE || v->n > ARRAY_MAX_DIMS)
        return false;
    for (size_t i = 0; i < v->n; i++)
        if (v->item[i]->kind != PICKLE_INT || v->item[i]->i < 0)
            return false;
    return true;
}

/* storage, offset, sizes, strides, and what the newer function takes besides. */
static int rebuild_tensor(struct machine *m, const struct pickle_value *args)
{
    struct pickle_value *const *a = args->item;
    if (args->n < 4 || a[0]->kind != PICKLE_STORAGE || a[1]->kind != PICKLE_INT || a[1]->i < 0 ||
        !is_sizes(a[2]) || !is_sizes(a[3]) || a[2]->n != a[3]->n)
        return machine_bad(m, "a tensor without a storage, a shape of up to 8 sizes and strides");
    struct pickle_value *t = machine_make(m, PICKLE_TENSOR);
    if (!t)
        return machine_push(m, t);
    t->i = a[1]->i;
    t->dtype = a[0]->dtype;
    int rc = machine_append(m, t, a[0]);
    rc = rc < 0 ? rc : machine_append(m, t, a[2]);
    rc = rc < 0 ? rc : machine_append(m, t, a[3]);
    return rc < 0 ? rc : machine_push(m, t);
}

static int as_never(struct machine *m, const struct global *g)
{
    return err_set(m->err, ERR_FORMAT, "damaged pickle: it calls %s.%s as torch never does",
                   g->module, g->name);
}

/* What calling a known global gives; fresh: asked for as a new object without a call of its own. */
int objects_reduce(struct machine *m, bool fresh)
{
    struct pickle_value *args = machine_pop(m), *what = args ? machine_pop(m) : NULL;
    if (!what)
        return ERR_FORMAT;
    const struct global *g = global_of(what);
    if (!g || args->kind != PICKLE_TUPLE)
        return machine_bad(m, "it calls what is no function");
    if (fresh && g->action != PARAMETERS)
        return as_never(m, g);
    switch (g->action) {
    case ORDERED_DICT:
    case PARAMETERS:
        if (args->n == 0)
            return machine_push_kind(m, PICKLE_DICT, 0);
        break;
    case TENSOR: return rebuild_tensor(m, args);
    case PARAMETER:
        if (args->n > 0 && args->item[0]->kind == PICKLE_TENSOR)
            return machine_push(m, args->item[0]);
        break;
    case SIZE:
        if (args->n == 1 && is_sizes(args->item[0]))
            return machine_push(m, args->item[0]);
        break;
    case SET:
        if (args->n == 1 && args->item[0]->kind == PICKLE_LIST)
            return machine_push(m, args->item[0]);
        break;
    case STORAGE: break;
    }
    return as_never(m, g);
}

/* ("storage", torch.FloatStorage, key, device, values), and None behind it in the older form. */
int objects_persistent(struct machine *m)
{
    struct pickle_value *id = machine_pop(m);
    if (!id)
        return ERR_FORMAT;
    struct pickle_value *const *a = id->item;
    const struct global *g = id->kind == PICKLE_TUPLE && id->n >= 5 ? global_of(a[1]) : NULL;
    if (!g || g->action != STORAGE || a[0]->kind != PICKLE_TEXT || a[0]->n != 7 ||
        memcmp(a[0]->text, "storage", 7) || a[2]->kind != PICKLE_TEXT || a[4]->kind != PICKLE_INT ||
        a[4]->i < 0)
        return machine_bad(m, "a reference to something that is no storage");
    if (id->n > 6 || (id->n == 6 && a[5]->kind != PICKLE_NONE))
        return err_set(m->err, ERR_UNSUPPORTED,
                       "a storage that is part of another: save the file again with a newer torch");
    struct pickle_value *s = machine_make(m, PICKLE_STORAGE);
    if (s) {
        s->dtype = g->dtype;
        s->text = a[2]->text;
        s->n = a[2]->n;
        s->i = a[4]->i;
    }
    return machine_push(m, s);
}

static bool is_text(const struct pickle_value *v, const char *text)
{
    return v->kind == PICKLE_TEXT && v->n == strlen(text) && !memcmp(v->text, text, v->n);
}

/* Sets attributes. Of an OrderedDict they are remarks (a model's versions) and forgotten; of a
 * ParameterDict one of them holds its tensors. */
int objects_build(struct machine *m)
{
    struct pickle_value *state = machine_pop(m);
    struct pickle_value *to = state && m->n ? m->stack[m->n - 1] : NULL;
    if (!state)
        return ERR_FORMAT;
    if (!to || to->kind != PICKLE_DICT || state->kind != PICKLE_DICT)
        return machine_bad(m, "attributes of what has none, or that are no dict");
    int rc = 0;
    for (size_t i = 0; i + 1 < state->n && state != to; i += 2) {
        struct pickle_value *v = state->item[i + 1];
        if (!is_text(state->item[i], "_parameters") || v->kind != PICKLE_DICT || v == to)
            continue;
        for (size_t k = 0; k < v->n && rc == 0; k++)
            rc = machine_append(m, to, v->item[k]);
    }
    return rc;
}
