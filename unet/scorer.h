/* scorer.h: pictures and texts in one space: how well they go together.
 *
 * A scorer is any folder in CLIPModel's layout: config.json, model.safetensors, vocab.json, merges.txt,
 * preprocessor_config.json. weft ships a small one for its demo world.
 *
 *     scorer_open(&s, dev, "assets/scorer", &err);
 *     scorer_image(s, &im, a, &err);                // a, b: float[s->clip->dim], of length 1
 *     scorer_text(s, "a fox", b, &err);
 *     double likeness = scorer_cosine(s, a, b);     // times s->clip->scale: transformers' logit
 */
#ifndef WEFT_SCORER_H
#define WEFT_SCORER_H

#include "clip.h"
#include "image.h"
#include "tokenizer.h"

struct scorer {
    struct device *dev;
    struct clip *clip;
    struct tokenizer *tokenizer;
    struct sites sites; /* the tower's layers, by name */
    struct run run;
    /* preprocessor_config.json */
    bool resize, crop;
    int resize_w, resize_h; /* h 0: the shorter side becomes resize_w */
    int crop_w, crop_h;
    enum image_filter filter;
    float scale, mean[3], std[3]; /* value = (byte * scale - mean) / std */
};

int scorer_open(struct scorer **out, struct device *dev, const char *dir, struct err *err);
void scorer_close(struct scorer *s);

/* Embeddings of length 1. A text longer than the tower is cut as transformers does. */
int scorer_text(struct scorer *s, const char *text, float *out, struct err *err);
int scorer_image(struct scorer *s, const struct image *im, float *out, struct err *err);
/* Several pictures, out [n, dim]; the same bits as one by one. */
int scorer_images(struct scorer *s, const struct image *im, int n, float *out, struct err *err);
double scorer_cosine(const struct scorer *s, const float *a, const float *b);

/* im as the vision tower takes it: [side, side, 3] floats, resized, cropped and normalised. For tests. */
int scorer_pixels(const struct scorer *s, const struct image *im, float *out, struct err *err);

#endif
