/* adapter_words.h: what adapters' own words are to a prompt. */
#ifndef WEFT_CLI_ADAPTER_WORDS_H
#define WEFT_CLI_ADAPTER_WORDS_H

#include "making.h"

/* How much of the prompt each adapter's trigger words are, into m->use (part, match). */
int adapter_words_weigh(struct making *m, struct err *err);
/* By which words each adapter is to be found in the prompt, into m->word and m->use (words): word=, else its triggers with its class
 * word, its triggers, its class word, the phrase that --auto chose it for, its name. A style has none: it is for the whole picture. */
int adapter_words_read(struct making *m, struct err *err);

#endif
