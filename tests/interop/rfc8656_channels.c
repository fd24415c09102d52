/* Keeps turnutils_uclient inside RFC 8656's channel numbers.
 *
 * uclient draws a channel number as 0x4000 + random % 0x4000, which is the range
 * of RFC 5766; RFC 8656 section 12 ends it at 0x4FFF, and a server answers 400
 * beyond. uclient has no option for this, so its random numbers are what can
 * be reached from outside: preloaded, this clears the two bits of a random long
 * that lead beyond 0x4FFF. Longer random strings (transaction ids) stay as they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

typedef int random_bytes(unsigned char *bytes, int count);

static int draw(const char *name, unsigned char *bytes, int count)
{
    random_bytes *real;
    *(void **)&real = dlsym(RTLD_NEXT, name);
    int done = real ? real(bytes, count) : 0;
    if (count == (int)sizeof(long)) {
        unsigned long value;
        memcpy(&value, bytes, sizeof value);
        value &= ~0x3000UL;
        memcpy(bytes, &value, sizeof value);
    }
    return done;
}

int RAND_bytes(unsigned char *bytes, int count)
{
    return draw("RAND_bytes", bytes, count);
}

int RAND_pseudo_bytes(unsigned char *bytes, int count)
{
    return draw("RAND_pseudo_bytes", bytes, count);
}
