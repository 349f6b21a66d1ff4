/* sheet_html.h: a sheet as one web page that needs nothing beside it. */
#ifndef WEFT_SHEET_HTML_H
#define WEFT_SHEET_HTML_H

#include "unet/sheet.h"

/* Pictures in full, in a table with the sheet's words; a click shows one alone, and below stand the settings
 * (text, or NULL). Replaces path. */
int sheet_html(const char *path, const struct sheet *s, const char *settings, struct err *err);

#endif
