#include "os_result.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(os_failure *failure, os_code code, int error, const char *format, va_list arguments) {
    if (failure == NULL)
        return;
    failure->code = code;
    failure->error = error;
    if (vsnprintf(failure->message, sizeof failure->message, format, arguments) < 0)
        failure->message[0] = '\0';
}

os_code os_fail(os_failure *failure, os_code code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(failure, code, 0, format, arguments);
    va_end(arguments);
    return code;
}

os_code os_fail_errno(os_failure *failure, int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(failure, OS_SYSTEM, error, format, arguments);
    va_end(arguments);
    return OS_SYSTEM;
}
