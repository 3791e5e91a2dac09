/* Feeds the meter's kernel with damaged events, to be built with AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 *     kernel_fuzz CORPUS SEED BATCHES
 *
 * CORPUS holds events, one a line. Each array is as long as kernel.py makes it, so a write beyond one is seen. Prints how many
 * events were read and of how many the kernel was sure: all of it is lost work when it is never sure.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernel.c"

#define PAYLOAD_MAX 60000
#define LINES_MAX 20000

static char *lines[LINES_MAX];
static size_t sizes[LINES_MAX];
static int count_lines = 0;
static uint64_t state;

static uint64_t draw(uint64_t below) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return below ? (z ^ (z >> 31)) % below : 0;
}

static const char *const PIECES[] = {
    "\"", "\\", "{", "}", "[", "]", ",", ":", "null", "true", "0", "9", "-1", "1e9", "0.001", "0.1000", "999999999.123456",
    "100000000", "100000001", "18446744073709551616", "000000000000000000", "\"0123456789abcdef\",", "\"a\":\"b\",", "\"\":\"\",",
    "\"attributes\":{", "\"cache\":{\"blocks\":[", "\"timing\":{\"queue_ms\":", "\"gpu_seconds\":86399.999,", "\"total\":",
    "2026-11-24T08:00:00.123456+00:00", "1970-01-01T00:00:00Z", "2199-12-31T23:59:59.999999Z", "\xff", "\x01", "\xc3\xa4", " \n\t\r",
    "\"worker\":{\"id\":\"w\",\"sequence\":9223372036854775807}", "\"subject\":\"acme\",", "\"id\":\"z\",", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};
#define PIECES_COUNT (sizeof PIECES / sizeof *PIECES)

static size_t put_in(char *into, size_t size, size_t at, const char *from, size_t length) {
    if (size + length > PAYLOAD_MAX) return size;
    memmove(into + at + length, into + at, size - at);
    memcpy(into + at, from, length);
    return size + length;
}

/* One event, whole or damaged in up to three places. */
static size_t make(char *into) {
    int line = (int)draw((uint64_t)count_lines);
    size_t size = sizes[line];
    memcpy(into, lines[line], size);
    for (uint64_t damages = draw(4); damages; damages--) {
        size_t at = draw(size + 1);
        switch (draw(7)) {
        case 0: if (size) into[at % size] = (char)draw(256); break;
        case 1: size = at; break;
        case 2: { size_t end = at + draw(size - at + 1); memmove(into + at, into + end, size - end); size -= end - at; break; }
        case 3: { const char *piece = PIECES[draw(PIECES_COUNT)]; size = put_in(into, size, at, piece, strlen(piece)); break; }
        case 4: { /* the same piece many times: long lists and long texts */
            const char *piece = PIECES[draw(PIECES_COUNT)];
            for (uint64_t times = draw(400); times; times--) size = put_in(into, size, at, piece, strlen(piece));
            break;
        }
        case 5: { /* a part of another event */
            int other = (int)draw((uint64_t)count_lines);
            size_t from = draw(sizes[other] + 1), length = draw(sizes[other] - from + 1);
            size = put_in(into, size, at, lines[other] + from, length);
            break;
        }
        default: if (size) { size_t last = size - 1; into[at % size] = into[draw(last + 1)]; }
        }
    }
    return size;
}

static void *array(size_t count, size_t each) {
    void *made = calloc(count ? count : 1, each);
    if (!made) abort();
    return made;
}

/* Every member of `columns` in its order, as _LAYOUT in kernel.py has it. */
static void allocate(columns *c, size_t count, size_t text, size_t longest) {
    void **member = (void **)c;
    static const size_t EACH[] = {1, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 4, 4, 4, 1, 1, 1, 8, 8};
    size_t at = 0;
    for (; at < sizeof EACH / sizeof *EACH; at++) member[at] = array(count, EACH[at]);
    member[at++] = array(text / 18 + 2, sizeof(span));
    member[at++] = array(text / 5 + 2, sizeof(span));
    member[at++] = array(text / 5 + 2, sizeof(span));
    member[at++] = array(count, 16);
    member[at++] = array(count, 16);
    member[at++] = array(longest + 2048, 1);
    if (at != sizeof *c / sizeof(void *)) abort();
}

static void use(const char *text, const span *spans, int64_t count) {
    uint64_t places = 16, bytes = 0;
    while (places <= 2 * (uint64_t)count) places *= 2;
    uint32_t *table = array(places, 4), *codes = array((size_t)count, 4), *firsts = array((size_t)count, 4);
    memset(table, 0xff, places * 4);
    if (number_texts(text, spans, count, table, places - 1, codes, firsts) > count) abort();
    for (int64_t i = 0; i < count; i++) bytes += spans[i].length + 5;
    char *packed = array(bytes, 1);
    pack_texts(text, spans, count, packed);
    free(table); free(codes); free(firsts); free(packed);
}

static int64_t run(void) {
    static char payload[PAYLOAD_MAX];
    int64_t count = 1 + (int64_t)draw(6), sure = 0;
    uint64_t *starts = array((size_t)count + 1, 8);
    char *text = array((size_t)count * (PAYLOAD_MAX + 1), 1);
    size_t size = 0, longest = 0;
    for (int64_t i = 0; i < count; i++) {
        size_t length = make(payload);
        memcpy(text + size, payload, length);
        if (length + 1 > longest) longest = length + 1;
        size += length + 1;
        starts[i + 1] = size;
    }
    char *exact = array(size, 1);
    memcpy(exact, text, size);
    free(text);
    columns c;
    allocate(&c, (size_t)count, size, longest);
    scan(exact, starts, count, &c);
    span *const texts[] = {c.source, c.event_id, c.tenant, c.model, c.lease_id, c.pool};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) use(exact, texts[i], count);
    use(exact, c.blocks, (int64_t)c.blocks_end[count - 1]);
    use(exact, c.attribute_keys, (int64_t)c.attributes_end[count - 1]);
    use(exact, c.attribute_values, (int64_t)c.attributes_end[count - 1]);
    uint64_t *filter = array(8 * 4, 8);
    uint8_t *maybe = array((size_t)count, 1);
    filter_add(filter, 3, c.identity, count);
    filter_ask(filter, 3, c.identity, count, maybe);
    for (int64_t i = 0; i < count; i++) {
        if (!maybe[i]) abort(); /* what was added may be there */
        sure += c.sure[i];
    }
    for (size_t at = 0; at < sizeof c / sizeof(void *); at++) free(((void **)&c)[at]);
    free(filter); free(maybe); free(exact); free(starts);
    return (sure << 32) | count;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    static char line[PAYLOAD_MAX];
    FILE *corpus = fopen(argv[1], "r");
    if (!corpus) return 2;
    while (count_lines < LINES_MAX && fgets(line, sizeof line, corpus)) {
        sizes[count_lines] = strcspn(line, "\n");
        lines[count_lines] = array(sizes[count_lines] + 1, 1);
        memcpy(lines[count_lines], line, sizes[count_lines]);
        count_lines++;
    }
    fclose(corpus);
    if (!count_lines) return 2;
    state = strtoull(argv[2], 0, 10);
    int64_t events = 0, sure = 0;
    for (long batches = atol(argv[3]); batches > 0; batches--) {
        int64_t done = run();
        events += done & 0xffffffff;
        sure += done >> 32;
    }
    printf("%lld %lld\n", (long long)events, (long long)sure);
    for (int i = 0; i < count_lines; i++) free(lines[i]);
    return 0;
}
