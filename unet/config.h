/* config.h: the JSON files beside a model, read so that nothing is overlooked.
 *
 * Every key that is asked for is ticked off. config_done() then refuses what is left and says
 * something (anything but null, false, empty): a key that changes the computation and that weft
 * does not know must never be passed over. Keys that begin with "_" are notes.
 *
 *     struct config *c;
 *     config_open(&c, "model/unet/config.json", &err);
 *     int w = config_int(c, "in_channels", 4);
 *     config_expect(c, "act_fn", "silu");
 *     rc = config_done(c, &err);      // first error of all the above, or an unknown key
 *     config_close(c);
 */
#ifndef WEFT_CONFIG_H
#define WEFT_CONFIG_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>

struct config;

int config_open(struct config **out, const char *path, struct err *err);
int config_parse(struct config **out, const char *json, const char *what, struct err *err);
void config_close(struct config *c);
/* The path, for messages. */
const char *config_path(const struct config *c);

/* Values; the default where the key is missing or null. A wrong type, or an int outside 32 bits, is
 * kept as an error for config_done. 4.0 is a whole number, too. */
int config_int(struct config *c, const char *key, int dflt);
double config_num(struct config *c, const char *key, double dflt);
bool config_bool(struct config *c, const char *key, bool dflt);
/* Borrowed from c. */
const char *config_str(struct config *c, const char *key, const char *dflt);
bool config_has(const struct config *c, const char *key);     /* there and not null */
bool config_is_null(const struct config *c, const char *key); /* there, and null */
bool config_is_object(const struct config *c, const char *key);

/* Lists. config_ints also takes a single number, which it repeats `n` times (n > 0).
 * Returns how many there are; 0 where missing, of a wrong type, or more than max (errors). */
int config_ints(struct config *c, const char *key, int n, int *out, int max);
int config_nums(struct config *c, const char *key, double *out, int max);
int config_strs(struct config *c, const char *key, const char **out, int max);

/* The key must be missing, null, or this: text "silu", number "1", "true", "false". Otherwise an
 * error: "config.json: act_fn is "gelu", weft only does "silu"". */
void config_expect(struct config *c, const char *key, const char *value);
/* Keys that say nothing about the computation. NULL-terminated. */
void config_ignore(struct config *c, const char *const *keys);
/* Keeps an error of the caller's own for config_done. */
void config_fail(struct config *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

int config_done(struct config *c, struct err *err);

/* The object under a key as a config of its own ("config.json: text_config"); close it too. A missing key
 * is an empty object. */
int config_sub(struct config **out, struct config *c, const char *key, struct err *err);

#endif
