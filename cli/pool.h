/* pool.h: adapters in memory, for pictures that come and go: as many as a limit of bytes allows, those of late.
 *
 *     pool_open(&p, 512 << 20, gone, user, &err);
 *     if (!pool_find(p, key, &file, &adapter)) {
 *         … open and bind …
 *         rc = pool_add(p, key, file, adapter, &err);   // they are the pool's
 *     }
 *     …
 *     pool_give(p, adapter);                            // once for each find and add
 *     pool_close(p);
 *
 * A file's bytes are copies (adapter_file_read), so that one which is changed or goes while its adapter is here harms
 * nothing. What a key does not say must be the same for all: device and model.
 */
#ifndef WEFT_POOL_H
#define WEFT_POOL_H

#include "store/adapter.h"

struct pool;
/* gone: told of an adapter before it is freed. */
int pool_open(struct pool **out, size_t limit, void (*gone)(void *user, const struct adapter *a),
              void *user, struct err *err);
void pool_close(struct pool *p);
/* Frees all that nobody holds. */
void pool_clear(struct pool *p);

bool pool_find(struct pool *p, const char *key, struct adapter_file **file,
               struct adapter **adapter);
/* Makes room for so many bytes among those that nobody holds, the longest unused first. false: there is none while the
 * others are held; where nobody holds any there always is. */
bool pool_room(struct pool *p, size_t bytes);
/* Takes both, also after an error. */
int pool_add(struct pool *p, const char *key, struct adapter_file *file, struct adapter *adapter,
             struct err *err);
void pool_give(struct pool *p, const struct adapter *adapter);
/* After those that are held were made ready: only now they take what they take. Frees others for it. */
void pool_count(struct pool *p);

struct pool_facts {
    size_t bytes, most; /* now, and at most so far */
    int n, found, loaded, freed;
};
struct pool_facts pool_facts(const struct pool *p);

#endif
