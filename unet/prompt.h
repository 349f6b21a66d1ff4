/* prompt.h: what the signs in a prompt mean: AUTOMATIC1111's, or refused by name.
 *
 *   (word) (word:1.2) [word] \( \)       weights
 *   BREAK                                begin a new chunk
 *   [a:b:0.5] [b:3] [a::3] [a|b]         the text changes with the step
 *   a AND b:0.5                          several conditions, weighted
 *   <lora:NAME:0.8> <lora:NAME:te:unet>  adapters
 *   NAME embedding:NAME                  textual inversions (words.h)
 *
 * Three layers, each usable alone: prompt_read splits off adapters and AND parts; a part's
 * schedule says which text holds at which step; prompt_chunks gives that text's weighted token
 * chunks. `<hypernet:…>` and other tags are refused by name.
 *
 *     prompt_read(&p, "a [red:blue:0.5] apple <lora:monkey:0.8>", &err);
 *     prompt_stages_parse(&s, p.part[0].text, 20, &err);          // until 10: red, until 20: blue
 *     prompt_chunks_make(&c, tokenizer, NULL, s.stage[0].text, 77, &err);
 *
 * A text is UTF-8 of at most 1 MiB, and its brackets may be 100 deep; what is more is ERR_ARG.
 * White space and word characters are those of Python's re.
 */
#ifndef WEFT_PROMPT_H
#define WEFT_PROMPT_H

#include "err.h"
#include "words.h"

/* A text with its weight, as A1111's parse_prompt_attention gives them. */
struct prompt_span {
    char *text;    /* owned */
    double weight; /* meaningless for a break */
    int is_break;  /* the word BREAK */
};
struct prompt_spans {
    struct prompt_span *span;
    size_t n;
};
/* At least one span, maybe an empty one. Inside brackets BREAK is a word like others and gets their
 * weight times -1: so A1111 has it. */
int prompt_spans_parse(struct prompt_spans *out, const char *text, struct err *err);
void prompt_spans_release(struct prompt_spans *s);

/* One stretch of steps with one text: A1111's end_at_step. */
struct prompt_stage {
    int until;
    char *text; /* owned */
};
struct prompt_stages {
    struct prompt_stage *stage;
    size_t n;
};
/* As A1111's get_learned_conditioning_prompt_schedules, for 1 to 10,000 steps. A step with a
 * point in it is a fraction of them. Brackets that do not fit stay text; a "|" or "\" that does
 * not fit makes text of all the prompt's schedules. The last stage lasts until `steps`. */
int prompt_stages_parse(struct prompt_stages *out, const char *text, int steps, struct err *err);
void prompt_stages_release(struct prompt_stages *s);

/* <lora:NAME:te:unet>; strengths default to 1, unet defaults to te. <lyco:…> and <locon:…> are the
 * same. te= and unet= name a strength. NAME goes on to the last ":" that is not followed by a
 * strength, so it may hold colons, but not end in a ":" and a number. */
struct prompt_adapter {
    char *name; /* owned */
    double te, unet;
};
struct prompt_part {
    char *text; /* owned; still with weights and schedules */
    double weight;
};
struct prompt {
    struct prompt_part *part; /* at least one */
    size_t n_part;
    struct prompt_adapter *adapter;
    size_t n_adapter;
};
/* Splits a whole prompt. A tag that is not known is an error that names it. A part's weight is the
 * ":number" it ends in; the only part has one too. */
int prompt_read(struct prompt *out, const char *text, struct err *err);
/* A negative prompt: one part of weight 1; AND and a number at the end are words like others, as in
 * A1111, and <lora:…> is refused. */
int prompt_read_negative(struct prompt *out, const char *text, struct err *err);
void prompt_release(struct prompt *p);

/* Token chunks as the text encoder takes them: n_chunk rows of `length` ids with a weight each.
 * length comes from max_position_embeddings (77 for CLIP); each row is start, length - 2 tokens,
 * end, padding. Long texts make several rows; a comma near the end of a row moves the break as
 * A1111 does (comma_padding_backtrack 20). At most 4096 rows. A word of `words` takes as many places as it
 * has vectors, all in one row. */
struct prompt_chunks {
    int length, n_chunk;
    int32_t *id;   /* [n_chunk, length]; negative: a vector of a word */
    float *weight; /* [n_chunk, length] */
    int weighted;  /* some weight is not 1 */
};
/* words NULL: none. Those that are met are marked as used. */
int prompt_chunks_make(struct prompt_chunks *out, const struct tokenizer *t, struct words *words,
                       const char *text, int length, struct err *err);
/* Appends empty chunks until there are n. */
int prompt_chunks_pad(struct prompt_chunks *c, const struct tokenizer *t, int n, struct err *err);
void prompt_chunks_release(struct prompt_chunks *c);

#endif
