#include "unet/err.h"

#include <criterion/criterion.h>
#include <string.h>

Test(err, keeps_code_and_message)
{
    struct err err;
    cr_assert_eq(err_set(&err, ERR_FORMAT, "%s: %d tensors", "a.safetensors", 3), ERR_FORMAT);
    cr_assert_eq(err.code, ERR_FORMAT);
    cr_assert_str_eq(err.msg, "a.safetensors: 3 tensors");
    cr_assert_eq(err_prefix(&err, "model %s", "m"), ERR_FORMAT);
    cr_assert_str_eq(err.msg, "model m: a.safetensors: 3 tensors");
}

Test(err, cuts_long_messages)
{
    struct err err;
    char big[3000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    err_set(&err, ERR_IO, "%s", big);
    cr_assert_eq(strlen(err.msg), sizeof err.msg - 1);
    err_prefix(&err, "%s", big);
    cr_assert_eq(strlen(err.msg), sizeof err.msg - 1);
}

Test(err, may_be_absent)
{
    cr_assert_eq(err_set(NULL, ERR_IO, "x"), ERR_IO);
}
