#include "os_ahead.h"

/* 0, or 1, 2, 4, 8 MiB. */
static uint64_t depth_of(uint64_t run) {
    uint64_t depth = 1u << 20;
    if (run < OS_AHEAD_FIRST)
        return 0;
    while (depth < OS_AHEAD_MAX && 2 * depth <= run)
        depth *= 2;
    return depth;
}

bool os_ahead_note(os_ahead *it, uint64_t offset, size_t size, uint64_t end, uint64_t *from, uint64_t *to) {
    if (offset > end || size > end - offset)
        return false;
    uint64_t stop = offset + size;
    if (offset > it->high + OS_AHEAD_SLACK || stop + OS_AHEAD_SLACK < it->high) {
        *it = (os_ahead){.high = stop, .until = stop};
        return false;
    }
    if (stop <= it->high)
        return false;
    it->run += stop - it->high < size ? stop - it->high : size;
    it->high = stop;
    if (it->until < stop)
        it->until = stop;
    uint64_t depth = depth_of(it->run), goal = end - stop < depth ? end : stop + depth;
    if (depth == 0 || goal <= it->until || (goal - it->until < OS_AHEAD_STEP && goal < end))
        return false;
    *from = it->until;
    *to = it->until = goal;
    return true;
}
