/* Lines of text as A1111's "prompts from file" has them. */
#include "jobs_private.h"

#include "unet/text.h"

#include <ctype.h>
#include <string.h>

/* Names and ours; "": nothing to do. "Euler a" stays: whoever takes the job knows both ways to call a sampler. */
static const char *const a1111[][2] = {
    {"prompt", "prompt"},
    {"negative_prompt", "negative"},
    {"seed", "seed"},
    {"steps", "steps"},
    {"cfg_scale", "cfg"},
    {"width", "width"},
    {"height", "height"},
    {"sampler_name", "sampler"},
    {"sd_model", "model"},
    {"n_iter", "n_iter"},
    {"batch_size", "batch_size"},
    {"outpath_samples", ""},
    {"outpath_grids", ""},
    {"prompt_for_display", ""},
    {"do_not_save_samples", ""},
    {"do_not_save_grid", ""},
};

/* Ours for "--name"; NULL: it is another word. */
static const char *our_name(const char *word)
{
    for (size_t i = 0; i < sizeof a1111 / sizeof *a1111; i++)
        if (!strncmp(word, "--", 2) && !strcmp(word + 2, a1111[i][0]))
            return a1111[i][1];
    return NULL;
}

/* The next word of *at as a shell reads it, unquoted where it stands. NULL: none, or with *open a quote that is not
 * closed. */
static char *next_word(char **at, bool *open)
{
    char *in = *at + strspn(*at, " \t\r\v\f"), *word = in, *out = in, quote = 0;
    if (!*in)
        return NULL;
    for (; *in && (quote || !isspace((unsigned char)*in)); in++) {
        if (*in == quote) {
            quote = 0;
        } else if (!quote && (*in == '\'' || *in == '"')) {
            quote = *in;
        } else {
            if (*in == '\\' && in[1] &&
                (!quote || (quote == '"' && (in[1] == '"' || in[1] == '\\'))))
                in++;
            *out++ = *in;
        }
    }
    *at = *in ? in + 1 : in;
    *out = 0;
    *open = quote != 0;
    return quote ? NULL : word;
}

/* Prompts need no quotes, they go on until the next option: adds the words from next on to value, and returns the
 * first that is not one of it. */
static char *take_text(char *value, char *next, char **at, bool *open)
{
    for (char *end = value; next && strncmp(next, "--", 2); next = next_word(at, open)) {
        end += strlen(end);
        *end = ' ';
        memmove(end + 1, next, strlen(next) + 1);
    }
    return next;
}

/* So many rounds of so many pictures. */
static int set_repeat(json_t *job, struct err *err)
{
    static const char *const name[] = {"n_iter", "batch_size"};
    json_int_t n, all = 1;
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(job, name[i]);
        n = 1;
        if (v && !jobs_whole(v, 1, JOBS_REPEAT_MOST, &n))
            return err_set(err, ERR_FORMAT, "'--%s' is a whole number from 1 to %d", name[i],
                           JOBS_REPEAT_MOST);
        json_object_del(job, name[i]);
        all *= n;
    }
    if (all > JOBS_REPEAT_MOST)
        return err_set(err, ERR_FORMAT, "'--n_iter' times '--batch_size' is more than %d",
                       JOBS_REPEAT_MOST);
    return json_object_set_new(job, "repeat", json_integer(all)) < 0 ? err_nomem(err, 64) : 0;
}

/* --name value …; the last of a name counts. s is cut to pieces. */
static int parse_options(json_t *job, char *s, struct err *err)
{
    bool open = false;
    char *word = next_word(&s, &open);
    while (word) {
        const char *ours = our_name(word);
        int shown = text_shown(word, strlen(word), 80);
        if (!ours && strncmp(word, "--", 2))
            return err_set(err, ERR_FORMAT, "'%.*s' stands where an option is expected", shown,
                           word);
        if (!ours)
            return err_set(err, ERR_FORMAT, "'%.*s' is not an option here%s", shown, word,
                           strcmp(word, "--sampler_index") ? "" : "; --sampler_name is");
        char *value = next_word(&s, &open), *next = next_word(&s, &open);
        if (!strcmp(ours, "prompt") || !strcmp(ours, "negative"))
            next = take_text(value, next, &s, &open);
        if (open)
            break;
        if (!value)
            return err_set(err, ERR_FORMAT, "'%.*s' needs a value", shown, word);
        if (!strcmp(ours, "seed") && !strcmp(value, "-1"))
            json_object_del(job, "seed"); /* any will do */
        else if (*ours && json_object_set_new(job, ours, json_string(value)) < 0)
            return err_nomem(err, strlen(value));
        word = next;
    }
    return open ? err_set(err, ERR_FORMAT, "a quote is not closed") : set_repeat(job, err);
}

int jobs_text_line(struct jobs_reading *r, char *s, size_t n, struct err *err)
{
    int rc = text_check(s, n, "the line", err);
    if (rc < 0)
        return rc;
    s += strspn(s, " \t\r\v\f");
    /* Dashes may be in a prompt; a name behind those it begins with is an option's, be it misspelt. */
    bool options = !strncmp(s, "--", 2) && s[2] && !isspace((unsigned char)s[2]);
    json_t *job = options ? json_object() : json_pack("{s:s}", "prompt", s);
    rc = !job ? err_nomem(err, n) : options ? parse_options(job, s, err) : 0;
    rc = rc < 0 ? rc : jobs_add_line(r, job, err);
    json_decref(job);
    return rc;
}
