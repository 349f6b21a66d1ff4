/* arena.h: where tensors lie in one piece of memory that somebody else owns.
 *
 * Only a plan: offsets, no memory. Given the same calls it gives the same places, so a forward pass can
 * be measured once with no memory at all, and then run in exactly `peak` bytes. Space given back is
 * used again (the smallest gap that fits), whatever the order.
 *
 *     size_t mark = arena_mark(&a);
 *     unsigned id = arena_take(&a, bytes, &offset);
 *     arena_drop(&a, id);        // one
 *     arena_pop(&a, mark);       // everything taken since the mark
 */
#ifndef WEFT_ARENA_H
#define WEFT_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct arena_block {
    size_t at, size;
    unsigned id;
    int held;  /* how often */
    bool gone; /* dropped while it was held */
};

struct arena {
    struct arena_block *live; /* by offset; owned */
    size_t n, cap;
    unsigned next; /* id of the next block; never 0 */
    size_t peak;   /* the highest end there ever was */
};

/* Offset of `bytes`, 64-byte aligned. Returns the block's id, 0 when there is no memory for the list. */
unsigned arena_take(struct arena *a, size_t bytes, size_t *offset);
void arena_drop(struct arena *a, unsigned id);
unsigned arena_mark(const struct arena *a);
void arena_pop(struct arena *a, unsigned mark);
/* What is held stays through drops and pops until it is let go as often as it was held. */
void arena_hold(struct arena *a, unsigned id);
void arena_let(struct arena *a, unsigned id);
/* Nothing is taken; peak stays. */
void arena_clear(struct arena *a);
void arena_release(struct arena *a);

#endif
