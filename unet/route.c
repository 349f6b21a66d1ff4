#include "route.h"

#include <string.h>

enum route_level route_level(const char *name)
{
    return strstr(name, "down_blocks.") ? ROUTE_DOWN
           : strstr(name, "up_blocks.") ? ROUTE_UP
                                        : ROUTE_MIDDLE;
}

unsigned route_kind(const char *name)
{
    return strstr(name, ".attn") ? ROUTE_ATTENTION : strstr(name, ".ff.") ? ROUTE_FF : ROUTE_OTHER;
}
